"""Official files load whole or not at all, and the report says what happened."""

import argparse

import pytest
import torch
from torch import nn

from dear_core.models import Side4Video, VideoMamba, random_tower
from dear_core.models.weight_files import WeightsError, read_state
from dear_core.models.weights import (
    load_clip_visual,
    load_side4video,
    load_videomamba,
    needs_quick_gelu,
    tower_difference,
)

SPATIAL = "transformer.side_spatial_position_embeddings"


def side_file(side, tower, prefix="module."):
    """What an official training run saves: wrapped, prefixed, tower and classifier inside."""
    visual = {**tower.visual.state_dict(), **side.state_dict()}
    flat = {f"{prefix}visual.{key}": value + 1 for key, value in visual.items()}
    flat |= {f"{prefix}fc.weight": torch.ones(5, 64), f"{prefix}fc.bias": torch.zeros(5)}
    return {"epoch": 3, "model_state_dict": flat, "optimizer_state_dict": {"state": {}, "param_groups": []}}


def clip_rest(width=16):
    """The part of a CLIP file that is not the image tower, with Side4Video's unused side layers."""
    keys = ["transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight", "positional_embedding"]
    keys += ["ln_final.weight", "ln_final.bias", "text_projection", "logit_scale"]
    keys += ["visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"]
    keys += ["transformer.side_linears.0.weight", "transformer.side_spatial_position_embeddings"]
    return {key: torch.zeros(width) for key in keys}


def mamba_file(model):
    """The model's weights plus one, as tensors of their own."""
    return {key: value + 1 for key, value in model.state_dict().items()}


def copy_of(module: nn.Module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_untouched(module, before):
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_side4video_files_fill_side_tower_and_head(make_side, tower):
    side = make_side()
    before, first = copy_of(side), tower.visual.conv1.weight.clone()
    file = side_file(side, tower)
    report, head = load_side4video(side, file)
    assert set(report.loaded) == set(before)
    assert report.missing == report.unexpected == report.reshaped == ()
    assert {reason: len(keys) for reason, keys in report.ignored.items()} == {
        "frozen tower": len(tower.visual.state_dict())
    }
    assert {key: value.shape for key, value in head.items()} == {"weight": (5, 64), "bias": (5,)}
    for key, value in side.state_dict().items():
        assert torch.equal(value, before[key] + 1), key
    load_clip_visual(tower, file)
    assert torch.equal(tower.visual.conv1.weight, first + 1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_side4video_dict_may_hold_a_whole_clip(make_side, tower, prefix):
    """`clip.load` returns the whole model's state, with a text tower that has side layers too."""
    side = make_side()
    flat = side_file(side, tower, prefix)["model_state_dict"]
    flat |= {f"{prefix}{key}": value for key, value in clip_rest().items()}
    flat |= {f"{prefix}fusion_model.frame_position_embeddings.weight": torch.zeros(3)}
    report, _ = load_side4video(side, flat)
    assert report.unexpected == ()
    assert {reason: len(keys) for reason, keys in report.ignored.items()} == {
        "frozen tower": len(tower.visual.state_dict()),
        "text tower": 7,
        "CLIP's output layers": 3,
        "side layers of the text tower, never used": 2,
        "fusion over frames, never used": 1,
    }


@pytest.mark.parametrize(
    "key",
    [
        "visual.time_embedding",
        "visual.transformer.resblocks.0.control_point1.temporal_attn.in_proj_weight",
        "visual.blocks.0.attn.q_proj.weight",
        "bert.encoder.weight",
    ],
)
def test_a_layer_that_changes_the_tower_or_is_unknown_refuses_the_file(make_side, tower, key):
    side = make_side()
    file, before = side_file(side, tower), copy_of(side)
    file["model_state_dict"][f"module.{key}"] = torch.zeros(2)
    with pytest.raises(WeightsError, match=rf"unexpected \['{key}'\] \(1\)"):
        load_side4video(side, file)
    assert_untouched(side, before)


def test_side4video_for_a_larger_image_has_its_table_resampled(make_side, tower):
    large = Side4Video(tower_width=64, tower_layers=2, patch_size=8, image_size=40, num_frames=3, dim=64)
    small = make_side()
    file = side_file(small, tower)
    report, _ = load_side4video(large, file)
    assert [(one.key, one.before, one.after) for one in report.reshaped] == [(SPATIAL, (9, 64), (25, 64))]
    assert "[9,64] → [25,64], bicubic with antialias" in report.summary()
    table = large.transformer.side_spatial_position_embeddings
    corner = small.transformer.side_spatial_position_embeddings[0] + 1
    assert (table[0] - corner).abs().max() < (table[0] - table[-1]).abs().max()


def test_a_clip_file_may_carry_the_layers_that_the_tower_drops(tower):
    state = {f"visual.{key}": value for key, value in tower.visual.state_dict().items()} | clip_rest()
    report = load_clip_visual(tower, state)
    assert report.unexpected == ()
    assert set(report.loaded) == set(tower.visual.state_dict())
    assert len(report.ignored["CLIP's output layers"]) == 3


def test_strict_loading_refuses_and_changes_nothing(make_side, tower):
    side = make_side()
    flat = side_file(side, tower)["model_state_dict"]
    before = copy_of(side)
    flat["module.visual.side_stray"] = flat.pop("module.visual.side_post_bn.weight")
    with pytest.raises(ValueError, match=r"missing \['side_post_bn.weight'\].*side_stray"):
        load_side4video(side, flat)
    assert_untouched(side, before)
    report, _ = load_side4video(side, flat, strict=False)
    assert report.missing == ("side_post_bn.weight",)
    assert report.unexpected == ("visual.side_stray",)
    assert torch.equal(side.side_conv1.bias, before["side_conv1.bias"] + 1)


def test_shapes_must_fit_even_when_not_strict(make_side, tower):
    side = make_side()
    flat, before = side_file(side, tower)["model_state_dict"], copy_of(side)
    flat["module.visual.side_conv1.bias"] = torch.zeros(65)
    with pytest.raises(ValueError, match=r"side_conv1.bias is \[65\], the module's is \[64\]"):
        load_side4video(side, flat, strict=False)
    flat["module.visual.side_conv1.bias"] = torch.zeros(64)
    flat[f"module.visual.{SPATIAL}"] = torch.zeros(8, 64)  # no square grid, so nothing to resample
    with pytest.raises(ValueError, match=r"position_embeddings is \[8, 64\], the module's is \[9, 64\]"):
        load_side4video(side, flat)
    assert_untouched(side, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_finite_numbers_are_refused_by_name(make_mamba, bad):
    model = make_mamba()
    state, before = mamba_file(model), copy_of(model)
    state["layers.1.mixer.A_log"][3, 2] = bad
    with pytest.raises(WeightsError, match=r"layers.1.mixer.A_log holds NaN or infinite weights"):
        load_videomamba(model, state)
    assert_untouched(model, before)
    state = mamba_file(model) | {"head.weight": torch.tensor([[bad]]), "head.bias": torch.zeros(1)}
    with pytest.raises(WeightsError, match="the classifier's weight holds NaN"):
        load_videomamba(model, state)


def test_integers_are_no_weights(make_mamba):
    model = make_mamba()
    state = mamba_file(model) | {"norm_f.weight": torch.ones(32, dtype=torch.int64)}
    with pytest.raises(WeightsError, match=r"norm_f.weight is of torch.int64, the module's of torch.float32"):
        load_videomamba(model, state)


def test_half_precision_loads_into_single(make_mamba):
    model = make_mamba()
    state = {key: value.half() for key, value in mamba_file(model).items()}
    load_videomamba(model, {"module": state})
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float()), key


@pytest.mark.parametrize("tubelet", [1, 2])
def test_image_weights_of_videomamba_are_inflated(tubelet):
    """The middle frame of the tube has the kernel, as the official `inflate_weight` with center=True."""
    sizes = {"image_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 1}
    model = VideoMamba(num_frames=4, tubelet=tubelet, **sizes)
    state = mamba_file(model)
    state["patch_embed.proj.weight"] = torch.full((32, 3, 8, 8), 7.0)
    del state["temporal_pos_embedding"]
    state |= {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)}
    report, head = load_videomamba(model, {"model": state, "model_ema": dict(state)})
    assert report.missing == ("temporal_pos_embedding",)
    kernel = model.patch_embed.proj.weight
    assert (kernel[:, :, tubelet // 2] == 7).all() and kernel.sum() == 7 * 32 * 3 * 8 * 8
    assert (model.temporal_pos_embedding == 0).all()
    assert set(head) == {"weight", "bias"}
    assert report.ignored == {"beside the weights that were read": ("model_ema",)}
    assert "in the middle of the tube" in report.summary()


def test_video_weights_need_their_temporal_table(make_mamba):
    model = make_mamba()
    state = model.state_dict()
    del state["temporal_pos_embedding"]
    with pytest.raises(ValueError, match="temporal_pos_embedding"):
        load_videomamba(model, state)


def test_other_sizes_and_frames_have_their_tables_resampled(make_mamba):
    large = VideoMamba(image_size=32, patch_size=8, num_frames=6, embed_dim=32, depth=2)
    small = make_mamba()
    state = mamba_file(large)
    report, _ = load_videomamba(small, {"backbone." + key: value for key, value in state.items()})
    assert [(one.key, one.before, one.after, one.how) for one in report.reshaped] == [
        ("pos_embed", (1, 17, 32), (1, 10, 32), "bicubic"),
        ("temporal_pos_embedding", (1, 6, 32), (1, 3, 32), "linear over time"),
    ]
    assert torch.equal(small.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert (small.temporal_pos_embedding == 1).all()


def test_masked_pretraining_leaves_its_decoder_and_norm_behind(make_mamba):
    """videomamba_pretrain.py has `norm` and `clip_decoder`, and no `norm_f`, which stays one."""
    model = make_mamba()
    state = mamba_file(model)
    state["norm.weight"] = 5 * state.pop("norm_f.weight")
    state |= {"clip_decoder.0.head.weight": torch.ones(8, 32), "clip_decoder.0.norm.bias": torch.ones(8)}
    report, head = load_videomamba(model, {"model": state})
    assert report.missing == ("norm_f.weight",) and head == {}
    assert len(report.ignored["masked pretraining"]) == 3
    assert (model.norm_f.weight == 1).all()
    del state["clip_decoder.0.head.weight"], state["clip_decoder.0.norm.bias"]
    with pytest.raises(WeightsError, match=r"missing \['norm_f.weight'\]"):
        load_videomamba(model, {"model": state})


def test_distillation_heads_are_passed_over_and_other_norms_are_not(make_mamba):
    model = make_mamba()
    state = mamba_file(model) | {"distill_head.1.weight": torch.ones(4, 32)}
    report, _ = load_videomamba(model, state)
    assert report.ignored == {"distillation head": ("distill_head.1.weight",)}
    state["layers.0.norm.bias"] = torch.zeros(32)  # a LayerNorm model, which computes something else
    with pytest.raises(WeightsError, match=r"unexpected \['layers.0.norm.bias'\]"):
        load_videomamba(model, state)


def test_a_file_with_the_runs_arguments_loads_from_disk(make_mamba, tmp_path):
    model = make_mamba()
    state = mamba_file(model)
    saved = {"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1e-3)}
    torch.save(saved, tmp_path / "checkpoint.pth")
    report, _ = load_videomamba(model, read_state(tmp_path / "checkpoint.pth"))
    assert report.summary() == f"loaded {len(state)} of {len(state)} tensors"
    assert_untouched(model, state)


def test_a_file_of_another_model_is_refused(make_mamba, make_side, tower):
    model, before = make_mamba(), copy_of(make_mamba())
    model.load_state_dict(before)
    with pytest.raises(WeightsError, match="it does not fit VideoMamba, nothing loaded: missing"):
        load_videomamba(model, side_file(make_side(), tower))
    larger = VideoMamba(image_size=24, patch_size=8, num_frames=3, embed_dim=48, depth=2)
    with pytest.raises(WeightsError, match=r"cls_token is \[1, 1, 48\], the module's is \[1, 1, 32\]"):
        load_videomamba(model, larger.state_dict())
    assert_untouched(model, before)
    for empty in ({"epoch": 3}, {"model": {}}, {3: torch.ones(1)}):
        with pytest.raises(WeightsError, match="holds no tensors"):
            load_videomamba(model, empty)


def test_a_files_tower_is_compared_with_the_one_in_use(make_side, tower):
    sizes = {"width": 64, "layers": 2, "heads": 2, "patch_size": 8}
    file = side_file(make_side(), tower)
    held = len(tower.visual.state_dict())
    assert tower_difference(tower, file) == (held, tuple(tower.visual.state_dict()))
    load_clip_visual(tower, file)
    assert tower_difference(tower, file) == (held, ())
    halves = {key: value.half() for key, value in file["model_state_dict"].items()}
    assert tower_difference(tower, halves) == (held, ())
    larger = random_tower(**sizes, image_size=40, seed=3)
    report = load_clip_visual(larger, file)
    assert [one.key for one in report.reshaped] == ["positional_embedding"]
    assert tower_difference(larger, file) == (held, ())
    file["model_state_dict"]["module.visual.ln_pre.bias"][3] += 1e-3
    assert tower_difference(tower, file) == (held, ("ln_pre.bias",))
    assert tower_difference(tower, {"visual.side_conv1.bias": torch.ones(2)}) == (0, ())


def test_activation_is_told_by_openais_and_side4videos_keys(make_side, tower):
    plain = {f"visual.{key}": value for key, value in tower.visual.state_dict().items()}
    marks = {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    assert not needs_quick_gelu(plain)
    assert needs_quick_gelu(plain | marks)
    assert needs_quick_gelu(side_file(make_side(), tower))
    assert load_clip_visual(tower, plain | marks).ignored == {"OpenAI's marks": tuple(marks)}
