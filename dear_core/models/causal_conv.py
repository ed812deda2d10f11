"""Mamba's short causal convolution with its SiLU, on channel-last tokens.

Why: it stands in front of every scan, in both directions. On a CPU it is one operator,
`dear::causal_conv_silu`, whose gradient is one compiled pass (`conv_numba`); elsewhere it is a sum of
shifted products, which torch.compile makes one kernel of.

What it does not do: it keeps no state between calls.

Legend: B clips, L time steps, E channels, K taps.
"""

import functools
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def causal_conv_silu(x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, *, reverse: bool = False) -> Tensor:
    """silu(bias + the sum over k of weight[k] * x[l-(K-1)+k]), steps before the first counting as zero.

    With `reverse` a step sees the K-1 steps after it: the convolution of the flipped sequence, flipped back.
    On the CPU the result is float32 (or wider), elsewhere it has x's dtype.
    """
    work = torch.promote_types(x_BLE.dtype, torch.float32)
    ours = x_BLE.is_meta or (x_BLE.device.type == "cpu" and _has_kernel())
    if ours and work == torch.float32:
        x_BLE, weight_EK, bias_E = (tensor.to(work) for tensor in (x_BLE, weight_EK, bias_E))
        return torch.ops.dear.causal_conv_silu(x_BLE, weight_EK, bias_E, reverse)
    return F.silu(causal_conv(x_BLE, weight_EK, bias_E, reverse=reverse))


def causal_conv(x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, *, reverse: bool = False) -> Tensor:
    """The convolution alone, as shifted products -> [B, L, E] in x's dtype."""
    length, taps = x_BLE.shape[1], weight_EK.shape[1]
    weight_EK, bias_E = weight_EK.to(x_BLE.dtype), bias_E.to(x_BLE.dtype)
    padded = F.pad(x_BLE, (0, 0, 0, taps - 1) if reverse else (0, 0, taps - 1, 0))
    y_BLE = bias_E
    for tap in range(taps):
        start = taps - 1 - tap if reverse else tap
        y_BLE = torch.addcmul(y_BLE, padded[:, start : start + length], weight_EK[:, tap])
    return y_BLE


@torch.library.custom_op("dear::causal_conv_silu", mutates_args=())
def _forward(x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, reverse: bool) -> Tensor:
    """oneDNN's depth-wise convolution on an image of one row in channel-last memory: nothing is moved."""
    length, reach = x_BLE.shape[1], weight_EK.shape[1] - 1
    with torch.autocast("cpu", enabled=False):
        y_BE1L = F.conv2d(
            x_BLE.transpose(1, 2)[:, :, None],
            (weight_EK.flip(1) if reverse else weight_EK)[:, None, None],
            bias_E,
            padding=(0, reach),
            groups=len(weight_EK),
        )
    first = reach if reverse else 0
    y_BLE = F.silu(y_BE1L[:, :, 0, first : first + length].transpose(1, 2))
    return y_BLE.contiguous()


@_forward.register_fake
def _(x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, reverse: bool) -> Tensor:
    return x_BLE.new_empty(x_BLE.shape)


@torch.library.custom_op("dear::causal_conv_silu_backward", mutates_args=())
def _backward(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, dy_BLE: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (x.detach().contiguous() for x in (x_BLE, weight_EK, bias_E, dy_BLE))
    return _conv_numba().conv_backward(*tensors, reverse=reverse)


@_backward.register_fake
def _(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, dy_BLE: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x_BLE.new_empty(x_BLE.shape), torch.empty_like(weight_EK), torch.empty_like(bias_E)


def _keep(ctx, inputs, output) -> None:
    x_BLE, weight_EK, bias_E, ctx.reverse = inputs
    ctx.save_for_backward(x_BLE, weight_EK, bias_E)


def _differentiate(ctx, dy_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    gradients = torch.ops.dear.causal_conv_silu_backward(*ctx.saved_tensors, dy_BLE, ctx.reverse)
    return *gradients, None


_forward.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.dear.causal_conv_silu)
def _forward_flops(x_shape, weight_shape, *_others, **_outputs) -> int:
    """Two operations a tap, as for any convolution."""
    return 2 * math.prod(x_shape) * weight_shape[1]


@register_flop_formula(torch.ops.dear.causal_conv_silu_backward)
def _backward_flops(x_shape, weight_shape, *_others, **_outputs) -> int:
    """As many for each of the gradients of x and of the weight."""
    return 4 * math.prod(x_shape) * weight_shape[1]


@torch.compiler.assume_constant_result
def _has_kernel() -> bool:
    return _conv_numba() is not None


@functools.cache
def _conv_numba() -> ModuleType | None:
    """The compiled path, imported at its first use (numba takes half a second to import)."""
    try:
        from dear_core.models import conv_numba
    except ImportError:
        return None
    return conv_numba
