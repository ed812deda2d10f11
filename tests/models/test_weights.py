"""Official files load whole or not at all, and the report says what happened."""

import pytest
import torch

from dear_core.models.weights import load_clip_visual, load_side4video, load_videomamba


def side_file(side, tower):
    """What an official training run saves: wrapped, prefixed, tower and classifier inside."""
    visual = {**tower.visual.state_dict(), **side.state_dict()}
    flat = {f"module.visual.{key}": value + 1 for key, value in visual.items()}
    flat |= {"module.fc.weight": torch.ones(5, 64), "module.fc.bias": torch.zeros(5)}
    return {"epoch": 3, "model_state_dict": flat, "optimizer_state_dict": {}}


def test_side4video_files_fill_side_tower_and_head(make_side, tower):
    side = make_side()
    before = {key: value.clone() for key, value in side.state_dict().items()}
    first = tower.visual.conv1.weight.clone()
    file = side_file(side, tower)
    report, head = load_side4video(side, file)
    assert set(report.loaded) == set(before)
    assert report.missing == report.unexpected == ()
    assert {key: value.shape for key, value in head.items()} == {"weight": (5, 64), "bias": (5,)}
    for key, value in side.state_dict().items():
        assert torch.equal(value, before[key] + 1), key
    load_clip_visual(tower, file)
    assert torch.equal(tower.visual.conv1.weight, first + 1)


def test_a_clip_file_may_carry_the_layers_that_the_tower_drops(tower):
    state = {f"visual.{key}": value for key, value in tower.visual.state_dict().items()}
    state |= {"visual.proj": torch.ones(64, 8), "visual.ln_post.weight": torch.ones(64)}
    report = load_clip_visual(tower, state)
    assert report.unexpected == ()
    assert set(report.loaded) == set(tower.visual.state_dict())


def test_strict_loading_refuses_and_changes_nothing(make_side, tower):
    side = make_side()
    before = side.side_conv1.bias.clone()
    flat = side_file(side, tower)["model_state_dict"]
    flat["module.visual.side_stray"] = flat.pop("module.visual.side_post_bn.weight")
    with pytest.raises(ValueError, match=r"missing \['side_post_bn.weight'\].*side_stray"):
        load_side4video(side, flat)
    assert torch.equal(side.side_conv1.bias, before)
    report, _ = load_side4video(side, flat, strict=False)
    assert report.missing == ("side_post_bn.weight",)
    assert report.unexpected == ("side_stray",)
    assert torch.equal(side.side_conv1.bias, before + 1)


def test_shapes_must_fit_even_when_not_strict(make_side, tower):
    side = make_side()
    flat = side_file(side, tower)["model_state_dict"]
    flat["module.visual.side_conv1.bias"] = torch.zeros(65)
    with pytest.raises(ValueError, match=r"side_conv1.bias is \[65\]"):
        load_side4video(side, flat, strict=False)


def test_image_weights_of_videomamba_are_inflated(make_mamba):
    model = make_mamba()
    state = {key: value + 1 for key, value in model.state_dict().items()}
    state["patch_embed.proj.weight"] = torch.full((32, 3, 8, 8), 7.0)
    del state["temporal_pos_embedding"]
    state |= {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)}
    report, head = load_videomamba(model, {"model": state})
    assert report.missing == ("temporal_pos_embedding",)
    assert (model.patch_embed.proj.weight == 7).all()
    assert (model.temporal_pos_embedding == 0).all()
    assert set(head) == {"weight", "bias"}


def test_video_weights_need_their_temporal_table(make_mamba):
    model = make_mamba()
    state = model.state_dict()
    del state["temporal_pos_embedding"]
    with pytest.raises(ValueError, match="temporal_pos_embedding"):
        load_videomamba(model, state)


def test_an_empty_state_is_refused(make_mamba):
    with pytest.raises(ValueError, match="holds no tensors"):
        load_videomamba(make_mamba(), {"epoch": 3})
