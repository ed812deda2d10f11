"""VideoMamba equals the official model, learns in both directions, and starts with Mamba's steps."""

import pytest
import torch
import torch.nn.functional as F

from dear_core.models import VideoMamba
from dear_core.models.videomamba import DT_MAX, DT_MIN
from dear_core.models.weights import load_videomamba


@pytest.fixture
def official(reference):
    file = reference("videomamba")
    config = file.config
    model = VideoMamba(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        num_frames=config["frames"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        d_state=config["d_state"],
        d_conv=config["d_conv"],
        expand=config["expand"],
        norm_eps=config["norm_eps"],
    )
    _, head = load_videomamba(model, file.group("state/"))
    return model, head, file


def test_eval_outputs_equal_the_official(official, assert_close_to_peak):
    model, head, file = official
    cls_BD, _ = model.eval()(file.tensors["video"])
    assert_close_to_peak(cls_BD, file.tensors["eval/features"], 1e-5)
    logits = F.linear(cls_BD, head["weight"], head["bias"])
    assert_close_to_peak(logits, file.tensors["eval/logits"], 1e-5)


def test_training_loss_and_every_gradient_equal_the_official(official, assert_close_to_peak):
    model, head, file = official
    head = {key: value.clone().requires_grad_() for key, value in head.items()}
    cls_BD, _ = model.train()(file.tensors["video"])
    loss = F.cross_entropy(F.linear(cls_BD, **head), file.tensors["labels"])
    torch.testing.assert_close(loss, file.tensors["train/loss"], atol=1e-5, rtol=0)
    loss.backward()
    own = {key: weight.grad for key, weight in model.named_parameters()}
    own |= {f"head.{key}": value.grad for key, value in head.items()}
    want = file.group("grad/")
    assert own.keys() == want.keys()
    for key, gradient in want.items():
        assert_close_to_peak(own[key], gradient, 1e-4)


def test_shapes_for_other_sizes_and_tubelets():
    model = VideoMamba(
        image_size=24,
        patch_size=8,
        num_frames=6,
        embed_dim=20,
        depth=1,
        in_channels=1,
        d_state=3,
        tubelet=2,
        drop_path=0.2,
    )
    cls_BD, patches_BTND = model(torch.randn(3, 1, 6, 24, 24))
    assert cls_BD.shape == (3, 20)
    assert patches_BTND.shape == (3, 3, 9, 20)


def test_both_directions_of_every_block_learn(make_mamba):
    model = make_mamba()
    cls_BD, patches = model(torch.randn(2, 3, 3, 24, 24))
    (cls_BD.square().sum() + patches[:, 0].square().sum()).backward()
    for block in model.layers:
        for key, weight in block.mixer.named_parameters():
            assert weight.grad.abs().max() > 0, key


def test_each_direction_sees_its_own_side(make_mamba):
    """The class token comes first, so only the backward direction carries patches to it."""
    model = make_mamba().eval()
    video = torch.randn(1, 3, 3, 24, 24)
    base, _ = model(video)
    for block in model.layers:  # close the backward direction
        block.mixer.D_b.data.zero_()
        block.mixer.x_proj_b.weight.data.zero_()
    closed, _ = model(video)
    other, _ = model(torch.randn(1, 3, 3, 24, 24))
    assert not torch.allclose(base, closed, atol=1e-6)
    torch.testing.assert_close(closed, other)


def test_delta_biases_start_with_mambas_range(make_mamba):
    for block in make_mamba().layers:
        for layer in (block.mixer.dt_proj, block.mixer.dt_proj_b):
            steps = F.softplus(layer.bias)
            assert steps.min() >= DT_MIN * 0.99
            assert steps.max() <= DT_MAX * 1.01
            assert steps.std() > 0


def test_runs_under_bfloat16_autocast(make_mamba):
    model = make_mamba().eval()
    video = torch.randn(2, 3, 3, 24, 24)
    want, _ = model(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = model(video)
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


def test_bad_arguments_are_refused(make_mamba):
    with pytest.raises(ValueError, match="expected a video"):
        make_mamba()(torch.randn(1, 3, 4, 24, 24))
    with pytest.raises(ValueError, match="tubelet=2 must divide"):
        VideoMamba(image_size=8, patch_size=8, num_frames=3, embed_dim=8, depth=1, tubelet=2)
