"""The model equals the plain versions it is measured against, at sizes that no published file has.

The plain Side4Video is laid out as the official code ([B, D, T, h, w], real Conv3d, nn.MultiheadAttention's
function), so this is the arithmetic of the reference states at any width, depth, patch and frame count.
"""

import pytest
import torch

from benchmarks import reference
from dear_core.models import Side4Video, VideoMamba, selective_scan_reference


def gradients(output, module):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    weights = dict(module.named_parameters())
    found = torch.autograd.grad((output * weight).sum(), list(weights.values()), allow_unused=True)
    return {name: grad for name, grad in zip(weights, found, strict=True) if grad is not None}


def assert_same(got, want, module):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    own, plain = gradients(got, module), gradients(want, module)
    assert own.keys() == plain.keys()
    for name, right in plain.items():
        torch.testing.assert_close(own[name], right, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("batch", "frames", "grid", "patch", "dim", "layers", "width"),
    [(1, 1, 2, 4, 64, 1, 32), (2, 3, 3, 8, 128, 2, 48), (1, 16, 4, 2, 192, 3, 24), (3, 5, 2, 14, 64, 2, 40)],
)
def test_side4video_at_other_sizes(batch, frames, grid, patch, dim, layers, width):
    torch.manual_seed(0)
    side = Side4Video(
        tower_width=width, tower_layers=layers, patch_size=patch, image_size=patch * grid,
        num_frames=frames, dim=dim,
    ).double()  # fmt: skip
    video = torch.randn(batch, 3, frames, patch * grid, patch * grid, dtype=torch.float64)
    taps = [torch.randn(batch * frames, 1 + grid**2, width, dtype=torch.float64) for _ in range(layers)]
    assert_same(side(video, taps), reference.side4video(side, video, taps), side)


@pytest.mark.parametrize(
    ("frames", "tubelet", "grid", "patch", "dim", "depth", "states"),
    [(1, 1, 1, 4, 16, 1, 1), (6, 2, 3, 8, 40, 2, 5), (16, 1, 2, 4, 24, 3, 16)],
)
def test_videomamba_at_other_sizes(frames, tubelet, grid, patch, dim, depth, states):
    torch.manual_seed(0)
    model = VideoMamba(
        image_size=patch * grid, patch_size=patch, num_frames=frames, embed_dim=dim, depth=depth,
        d_state=states, tubelet=tubelet,
    ).double()  # fmt: skip
    video = torch.randn(2, 3, frames, patch * grid, patch * grid, dtype=torch.float64)
    assert_same(model(video)[0], reference.videomamba(model, video, selective_scan_reference), model)
