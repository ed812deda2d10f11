"""Every path of the causal convolution equals torch's, values and gradients, in both directions."""

import pytest
import torch
import torch.nn.functional as F

from dear_core.models.causal_conv import causal_conv, causal_conv_silu

SIZES = [(1, 1, 1, 4), (2, 2, 6, 4), (3, 9, 70, 4), (2, 5, 64, 1), (1, 33, 130, 3)]


def inputs(batch, length, channels, taps, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    return draw(batch, length, channels), draw(channels, taps), draw(channels)


def torchs(x, weight, bias, *, reverse):
    """conv1d with padding on both sides, cut to the length; flipped before and after for `reverse`."""
    rows = x.transpose(1, 2)
    rows = rows.flip(-1) if reverse else rows
    taps = weight.shape[1]
    y = F.conv1d(rows, weight[:, None], bias, padding=taps - 1, groups=len(weight))[..., : x.shape[1]]
    return F.silu(y.flip(-1) if reverse else y).transpose(1, 2)


def silu_of_the_sum(x, weight, bias, *, reverse):
    return F.silu(causal_conv(x, weight, bias, reverse=reverse))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("path", "dtype"),
    [(causal_conv_silu, torch.float32), (silu_of_the_sum, torch.float32), (causal_conv_silu, torch.float64)],
    ids=["numba", "sum", "float64"],
)
def test_equals_conv1d(size, reverse, path, dtype, assert_close_to_peak):
    weight = torch.randn(size[0], size[1], size[2], generator=torch.Generator().manual_seed(1))
    exact, own = inputs(*size, dtype=torch.float64), inputs(*size, dtype=dtype)
    want, got = torchs(*exact, reverse=reverse), path(*own, reverse=reverse)
    assert got.dtype == dtype
    assert_close_to_peak(got.double(), want, 1e-6)
    want_grads = torch.autograd.grad((want * weight.double()).sum(), exact)
    got_grads = torch.autograd.grad((got * weight.to(dtype)).sum(), own)
    for grad, right in zip(got_grads, want_grads, strict=True):
        assert_close_to_peak(grad.double(), right, 1e-5)


def test_bf16_is_widened_on_the_cpu():
    x, weight, bias = inputs(2, 9, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv_silu(x.bfloat16(), weight, bias)
    assert y.dtype == torch.float32
    y.sum().backward()
    torch.testing.assert_close(y, torchs(x.bfloat16().float(), weight, bias, reverse=False))


def test_strides_do_not_matter():
    x, weight, bias = inputs(2, 9, 70, 4)
    wide = torch.cat([x, x], dim=-1)[..., :70]
    assert torch.equal(causal_conv_silu(wide, weight, bias), causal_conv_silu(x, weight, bias))


@pytest.mark.slow
def test_the_operator_keeps_torchs_rules():
    x, weight, bias = inputs(2, 9, 70, 4)
    assert set(torch.library.opcheck(torch.ops.dear.causal_conv_silu, (x, weight, bias, True)).values()) == {
        "SUCCESS"
    }
    dy = torch.randn(2, 9, 70)
    tensors = [tensor.detach() for tensor in (x, weight, bias)]
    assert set(
        torch.library.opcheck(torch.ops.dear.causal_conv_silu_backward, (*tensors, dy, False)).values()
    ) == {"SUCCESS"}
