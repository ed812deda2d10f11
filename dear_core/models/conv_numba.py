"""The gradient of Mamba's short convolution and its SiLU in one pass over memory, by numba.

Why: a depth-wise convolution of four taps does next to no arithmetic, so its time is that of moving its
tensors. torch's backward pass moves them about ten times; this kernel moves each once, and needs the input
alone, from which it computes what stood before the SiLU again.

What it does not do: float32 on the CPU only, and no forward pass: oneDNN's is as quick (see `causal_conv`).

Legend: B clips, L time steps, E channels, K taps, W channels a block, P blocks. A task is one block of one
clip; its gradients of weight and bias are a part of their own. Time runs forwards from step 0, or backwards
from step L-1: `sign` and `origin` turn a step in that order into a place.
"""

import numpy as np
from torch import Tensor

from dear_core.models.numba_simd import LOG2_E, compiled, exp2, share_out

WIDTH = 64  # W: four AVX-512 vectors


@compiled
def _preactivation(x_LE, weight_KW, bias_W, channel, step, origin, sign, a_W):
    """bias + the sum of taps over the step and the K-1 before it, for one block."""
    K, width = weight_KW.shape[0], a_W.shape[0]
    for d in range(width):
        a_W[d] = bias_W[d]
    for k in range(max(0, K - 1 - step), K):
        row = x_LE[origin + sign * (step - (K - 1 - k)), channel : channel + width]
        for d in range(width):
            a_W[d] += weight_KW[k, d] * row[d]


@compiled
def _backward(first, stride, reverse, x_BLE, weight_PKW, bias_PW, dy_BLE, dx_BLE, dweight_BPKW, dbias_BPW):
    """The gradients of the tasks first, first + stride, ..."""
    B, L, E = x_BLE.shape
    P, K = weight_PKW.shape[0], weight_PKW.shape[1]
    origin, sign = (L - 1, -1) if reverse else (0, 1)
    for task in range(first, B * P, stride):
        b, p = task // P, task % P
        channel, width = p * WIDTH, min(WIDTH, E - p * WIDTH)
        a_W = np.empty(width, np.float32)
        dweight_BPKW[b, p] = np.float32(0.0)
        dbias_BPW[b, p] = np.float32(0.0)
        for step in range(L):
            _preactivation(x_BLE[b], weight_PKW[p], bias_PW[p], channel, step, origin, sign, a_W)
            place = origin + sign * step
            dy_W = dy_BLE[b, place, channel : channel + width]
            dbias_W = dbias_BPW[b, p]
            for d in range(width):
                share = np.float32(1.0) / (np.float32(1.0) + exp2(a_W[d] * np.float32(-LOG2_E)))
                a_W[d] = dy_W[d] * share * (np.float32(1.0) + a_W[d] * (np.float32(1.0) - share))
                dbias_W[d] += a_W[d]
            own_W = dx_BLE[b, place, channel : channel + width]
            for d in range(width):
                own_W[d] = np.float32(0.0)
            for k in range(max(0, K - 1 - step), K):
                source = place - sign * (K - 1 - k)
                x_W = x_BLE[b, source, channel : channel + width]
                dx_W = dx_BLE[b, source, channel : channel + width]
                weight_W, dweight_W = weight_PKW[p, k], dweight_BPKW[b, p, k]
                for d in range(width):
                    dweight_W[d] += a_W[d] * x_W[d]
                for d in range(width):
                    dx_W[d] += weight_W[d] * a_W[d]


def _blocks(weight_EK: Tensor, bias_E: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weight [P, K, W] and bias [P, W], the last block padded with zeros."""
    E, K = weight_EK.shape
    P = -(-E // WIDTH)
    weight, bias = weight_EK.new_zeros(P * WIDTH, K), bias_E.new_zeros(P * WIDTH)
    weight[:E], bias[:E] = weight_EK, bias_E
    return weight.view(P, WIDTH, K).transpose(1, 2).contiguous().numpy(), bias.view(P, WIDTH).numpy()


def conv_backward(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, dy_BLE: Tensor, *, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias; all tensors contiguous."""
    weight, bias = _blocks(weight_EK, bias_E)
    (P, K, W), (E, _) = weight.shape, weight_EK.shape
    dx_BLE = x_BLE.new_empty(x_BLE.shape)
    dweight_BPKW, dbias_BPW = x_BLE.new_empty(len(x_BLE), P, K, W), x_BLE.new_empty(len(x_BLE), P, W)
    outputs = (dx_BLE.numpy(), dweight_BPKW.numpy(), dbias_BPW.numpy())
    tasks = x_BLE.shape[0] * P
    share_out(_backward, tasks, reverse, x_BLE.numpy(), weight, bias, dy_BLE.numpy(), *outputs)
    dweight_EK = dweight_BPKW.sum(0).transpose(1, 2).reshape(P * W, K)[:E].contiguous()
    return dx_BLE, dweight_EK, dbias_BPW.sum(0).view(-1)[:E].clone()
