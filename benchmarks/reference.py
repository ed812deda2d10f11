"""Plain versions of what the model computes, to measure it against in the same run.

Why: a ratio says more than seconds from another day. Side4Video is computed here in the layout of the
official code ([B, D, T, h, w] for convolutions and norms, [N, B*T, D] for attention and MLP, three moves a
block, real Conv3d), the selective scan as the loop over time that defines it. Weights are those of the
modules they are compared with, so equality is checked on the way.

What it does not do: it is for measuring only; nothing in the library imports it.

Legend: B clips, C colours, T frames, h w patches of a frame, N = h*w, D side width, W tower width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dear_core.models.batch_norm import ChannelLastBatchNorm
from dear_core.models.side4video import Side4Video, SideBlock
from dear_core.models.videomamba import MambaMixer, VideoMamba


def side4video(side: Side4Video, video_BCTHW: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """Side4Video in training mode, in the official layout -> patches_BTND."""
    conv = side.side_conv1
    x = F.conv3d(video_BCTHW, conv.weight, conv.bias, conv.stride, conv.padding)
    x = _batch_norm_3d(side.side_pre_bn3d, x)
    B, D, T, h, w = x.shape
    network = side.transformer
    layers = zip(taps, network.side_lns, network.side_linears, network.side_transformer, strict=True)
    for tap_MLW, norm, linear, block in layers:
        side_LMD = linear(norm(tap_MLW.transpose(0, 1)))
        x_NMD = 0.5 * _tokens(x) + 0.5 * side_LMD[1:]
        x = _block(block, _video(x_NMD, B, T, h, w), side_LMD[:1], network.side_spatial_position_embeddings)
    return _batch_norm_3d(side.side_post_bn, x).permute(0, 2, 3, 4, 1).reshape(B, T, h * w, D)


def _block(block: SideBlock, x_BDThw: Tensor, token_1MD: Tensor, position_ND: Tensor) -> Tensor:
    B, _D, T, h, w = x_BDThw.shape
    x_BDThw = x_BDThw + block.conv(_batch_norm_3d(block.bn_1, x_BDThw))
    x_NMD = _tokens(x_BDThw)
    shifted = torch.zeros_like(token_1MD).unflatten(1, (B, T))
    token_1BTD, half = token_1MD.unflatten(1, (B, T)), token_1MD.shape[-1] // 2
    shifted[:, :, :-1, :half] = token_1BTD[:, :, 1:, :half]
    shifted[:, :, 1:, half:] = token_1BTD[:, :, :-1, half:]
    tokens_LMD = torch.cat([shifted.flatten(1, 2), x_NMD + position_ND[:, None]])
    normed_LMD = block.ln_1(tokens_LMD)
    attention = block.attn
    mixed_NMD, _ = F.multi_head_attention_forward(
        normed_LMD[1:], normed_LMD, normed_LMD, normed_LMD.shape[-1], attention.heads,
        attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0,
        attention.out_proj.weight, attention.out_proj.bias, need_weights=False,
    )  # fmt: skip
    x_NMD = x_NMD + mixed_NMD
    normed = _batch_norm_3d(block.bn_2, _video(x_NMD, B, T, h, w))
    return _video(x_NMD + block.mlp(_tokens(normed)), B, T, h, w)


def _batch_norm_3d(norm: ChannelLastBatchNorm, x_BDThw: Tensor) -> Tensor:
    return F.batch_norm(x_BDThw, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def _tokens(x_BDThw: Tensor) -> Tensor:
    """[B, D, T, h, w] -> [N, B*T, D]."""
    return x_BDThw.permute(3, 4, 0, 2, 1).flatten(0, 1).flatten(1, 2)


def _video(x_NMD: Tensor, B: int, T: int, h: int, w: int) -> Tensor:
    """[N, B*T, D] -> [B, D, T, h, w], contiguous."""
    return x_NMD.unflatten(1, (B, T)).unflatten(0, (h, w)).permute(2, 4, 3, 0, 1).contiguous()


def videomamba(model: VideoMamba, video_BCTHW: Tensor, scan) -> Tensor:
    """VideoMamba's class token [B, D], each direction scanned by `scan` on channel-first copies."""
    hidden, residual = model.embed(video_BCTHW), 0.0
    for block in model.layers:
        residual = hidden + residual
        hidden = _mixer(block.mixer, block.norm(residual), scan)
    return model.norm_f(residual + hidden)[:, 0]


def _mixer(mixer: MambaMixer, x_BLD: Tensor, scan) -> Tensor:
    xz_BEL = mixer.in_proj.weight @ x_BLD.transpose(1, 2)
    x_BEL, z_BEL = xz_BEL.chunk(2, dim=1)
    length = x_BEL.shape[-1]
    total = torch.zeros_like(x_BEL)
    for back, conv, x_proj, dt_proj, A_log, D in (
        (False, mixer.conv1d, mixer.x_proj, mixer.dt_proj, mixer.A_log, mixer.D),
        (True, mixer.conv1d_b, mixer.x_proj_b, mixer.dt_proj_b, mixer.A_b_log, mixer.D_b),
    ):
        u_BEL = F.silu(conv(x_BEL.flip(-1) if back else x_BEL)[..., :length])
        widths = [mixer.dt_rank, mixer.d_state, mixer.d_state]
        dt_BRL, B_BSL, C_BSL = (x_proj.weight @ u_BEL).split(widths, dim=1)
        delta_BEL = dt_proj.weight @ dt_BRL
        y_BEL = scan(u_BEL, delta_BEL, -A_log.exp(), B_BSL, C_BSL, D, None, dt_proj.bias)
        total = total + (y_BEL.flip(-1) if back else y_BEL)
    return mixer.out_proj((total * F.silu(z_BEL)).transpose(1, 2))
