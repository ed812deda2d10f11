"""Side4Video equals the official model, and its shapes follow its arguments."""

import pytest
import torch
import torch.nn.functional as F

from dear_core.models import DEAR, Side4Video, random_tower
from dear_core.models.side4video import shift_class_token, temporal_taps
from dear_core.models.weights import load_clip_visual, load_side4video


@pytest.fixture
def official(reference):
    """The RGB row with the official weights, and the reference."""
    file = reference("side4video")
    config = file.config
    tower = random_tower(
        width=config["clip_width"],
        layers=config["clip_layers"],
        heads=config["clip_heads"],
        patch_size=config["patch_size"],
        image_size=config["image_size"],
        seed=0,
        quick_gelu=config["quick_gelu"],
    )
    side = Side4Video(
        tower_width=config["clip_width"],
        tower_layers=config["clip_layers"],
        patch_size=config["patch_size"],
        image_size=config["image_size"],
        num_frames=config["frames"],
        dim=config["side_dim"],
    )
    load_clip_visual(tower, file.group("state/"))
    _, head = load_side4video(side, file.group("state/"))
    model = DEAR(tower=tower, branches={"rgb:side4video": side}, num_classes=config["classes"])
    model.streams["rgb:side4video"].fc.load_state_dict(head)
    return model, file


def test_eval_outputs_equal_the_official(official, assert_close_to_peak):
    model, file = official
    model.eval()
    video_BCTHW = file.tensors["video"].transpose(1, 2)
    taps = model.tower(file.tensors["video"].flatten(0, 1))
    features = model.branches["rgb:side4video"](video_BCTHW, taps).mean((1, 2))
    assert_close_to_peak(features, file.tensors["eval/features"], 1e-5)
    assert_close_to_peak(model({"rgb": video_BCTHW}), file.tensors["eval/logits"], 1e-5)


def test_training_loss_and_every_gradient_equal_the_official(official, assert_close_to_peak):
    model, file = official
    model.train()
    logits = model({"rgb": file.tensors["video"].transpose(1, 2)})
    assert_close_to_peak(logits, file.tensors["train/logits"], 1e-5)
    loss = F.cross_entropy(logits, file.tensors["labels"])
    torch.testing.assert_close(loss, file.tensors["train/loss"], atol=1e-5, rtol=0)
    loss.backward()
    own = {f"visual.{k}": w.grad for k, w in model.branches["rgb:side4video"].named_parameters()} | {
        f"fc.{k}": w.grad for k, w in model.streams["rgb:side4video"].fc.named_parameters()
    }
    want = file.group("grad/")
    assert own.keys() == want.keys()
    for key, gradient in want.items():
        assert_close_to_peak(own[key], gradient, 1e-4)


@pytest.mark.parametrize(("batch", "frames", "grid", "dim"), [(1, 1, 2, 64), (3, 5, 3, 128)])
def test_other_sizes(batch, frames, grid, dim):
    side = Side4Video(
        tower_width=32, tower_layers=2, patch_size=4, image_size=4 * grid, num_frames=8, dim=dim
    )
    taps = [torch.randn(batch * frames, 1 + grid**2, 32) for _ in range(2)]
    out = side(torch.randn(batch, 3, frames, 4 * grid, 4 * grid), taps)
    assert out.shape == (batch, frames, grid**2, dim)
    assert out.isfinite().all()


def test_stem_equals_the_convolution(make_side):
    side = make_side()
    video = torch.randn(2, 3, 3, 24, 24)
    conv = side.side_conv1
    want_BDTN = F.conv3d(video, conv.weight, conv.bias, conv.stride, padding=(1, 0, 0)).flatten(3)
    torch.testing.assert_close(side.stem(video), want_BDTN.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def test_shifts_stop_at_the_ends():
    x = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]])
    shifted = torch.tensor([[[2.0, 0.0], [3.0, 10.0], [0.0, 20.0]]])
    torch.testing.assert_close(shift_class_token(x), shifted)
    torch.testing.assert_close(temporal_taps(x, 0 * x, 100 * x)[0, :, 0], torch.tensor([200.0, 301.0, 2.0]))


def test_runs_under_bfloat16_autocast(make_side):
    side = make_side()
    taps = [torch.randn(6, 10, 64) for _ in range(2)]
    video = torch.randn(2, 3, 3, 24, 24)
    want = side.eval()(video, taps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = side(video, taps)
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize(
    ("change", "message"), [({"dim": 100}, "multiple of 64"), ({"patch_size": 7}, "must divide")]
)
def test_bad_arguments_are_refused(change, message):
    good = {
        "tower_width": 64,
        "tower_layers": 2,
        "patch_size": 8,
        "image_size": 24,
        "num_frames": 3,
        "dim": 64,
    }
    with pytest.raises(ValueError, match=message):
        Side4Video(**good | change)


def test_bad_inputs_are_refused(make_side):
    side = make_side()
    taps = [torch.randn(3, 10, 64) for _ in range(2)]
    with pytest.raises(ValueError, match="expected a video"):
        side(torch.randn(1, 3, 3, 32, 32), taps)
    with pytest.raises(ValueError, match="expected 2 taps"):
        side(torch.randn(1, 3, 3, 24, 24), taps[:1])
    with pytest.raises(ValueError, match="tap 1 must be"):
        side(torch.randn(1, 3, 3, 24, 24), [taps[0], taps[1][:, 1:]])
