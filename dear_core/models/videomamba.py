"""VideoMamba: bidirectional Mamba-1 blocks over all patches of a clip.

Why: the second depth branch. State keys and arithmetic are those of the official model
(OpenGVLab/VideoMamba, videomamba/video_sm/models/videomamba.py and mamba_simple.py), without the
classifier, so its checkpoints load.

What it does not do: it has no classifier, keeps no state between clips, and fuses nothing (the
scan is `selective_scan`, which picks its kernel).

Layout: tokens stay [B, L, E] throughout. Every product is one matrix product, and the backward direction
scans from the end instead of on flipped copies.

Legend: B clips, C colours, T time slots (frames / tubelet), H W pixels, N patches a slot,
L = 1 + T*N tokens (class token first), D model width, E = expand * D, R rank of delta, S states.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dear_core.models.causal_conv import causal_conv_silu
from dear_core.models.selective_scan import Direction, scan_directions

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # mamba_simple.py: dt_min, dt_max, dt_init_floor
INIT_STD = 0.02  # videomamba.py: segm_init_weights


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 or wider."""

    def __init__(self, dim: int, *, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D] in the weight's dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class MambaMixer(nn.Module):
    """One Mamba-1 mixer that reads the tokens in both directions.

    Both directions share `in_proj`, the gate z and `out_proj`; each has its own convolution,
    projections, A and D (the suffix `_b` is the backward one).

    The official constructor gives `dt_proj.bias` Mamba's values (softplus of it log-uniform in
    [0.001, 0.1]) and a second pass over all linear layers then zeroes it; `dt_proj_b.bias` it never
    sets. Here both keep Mamba's values, so that from scratch the states remember from tens to a
    thousand steps instead of one or two.
    """

    def __init__(self, dim: int, *, d_state: int, d_conv: int, expand: int, depth: int):
        super().__init__()
        inner = expand * dim
        self.d_state, self.dt_rank = d_state, math.ceil(dim / 16)
        x_width = self.dt_rank + 2 * d_state
        conv = {"groups": inner, "padding": d_conv - 1}
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, **conv)  # holds the weights, as conv1d_b
        self.x_proj = nn.Linear(inner, x_width, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(_s4d_real_log(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d_b = nn.Conv1d(inner, inner, d_conv, **conv)
        self.x_proj_b = nn.Linear(inner, x_width, bias=False)
        self.dt_proj_b = nn.Linear(self.dt_rank, inner)
        self.A_b_log = nn.Parameter(_s4d_real_log(inner, d_state))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for layer in (self.in_proj, self.x_proj, self.x_proj_b, self.dt_proj, self.dt_proj_b):
            trunc_normal_(layer.weight, std=INIT_STD)
        for layer in (self.dt_proj, self.dt_proj_b):
            _init_delta_bias_(layer.bias)
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(depth)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """x_BLD -> x_BLD."""
        x_BLE, z_BLE = F.linear(x_BLD, self.in_proj.weight).chunk(2, dim=-1)
        x_BLE = x_BLE.contiguous()
        ahead = self._direction(
            x_BLE, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D, reverse=False
        )
        back = self._direction(
            x_BLE, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b, reverse=True
        )
        ahead_BEL, back_BEL = scan_directions([ahead, back])
        # silu(z) is the same token's gate in either direction, so it is applied once, to the sum.
        y_BLE = (ahead_BEL + back_BEL).transpose(1, 2) * F.silu(z_BLE)
        return self.out_proj(y_BLE)

    def _direction(
        self,
        x_BLE: Tensor,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        A_log_ES: Tensor,
        D_E: Tensor,
        *,
        reverse: bool,
    ) -> Direction:
        """What the scan of one direction reads; the tokens stay in their order in either."""
        u_BLE = causal_conv_silu(x_BLE, conv.weight[:, 0], conv.bias, reverse=reverse)
        widths = [self.dt_rank, self.d_state, self.d_state]
        dt_BLR, B_BLS, C_BLS = x_proj(u_BLE).split(widths, dim=-1)
        delta_BLE = F.linear(dt_BLR, dt_proj.weight)
        A_ES = -torch.exp(A_log_ES.float())
        u_BEL, delta_BEL, B_BSL, C_BSL = (x.transpose(1, 2) for x in (u_BLE, delta_BLE, B_BLS, C_BLS))
        return Direction(u_BEL, delta_BEL, A_ES, B_BSL, C_BSL, D_E, dt_proj.bias, reverse)


def _s4d_real_log(inner: int, d_state: int) -> Tensor:
    """log(1..S) for every channel (S4D-real, as mamba_simple.py)."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(inner, 1)


@torch.no_grad()
def _init_delta_bias_(bias_E: Tensor) -> None:
    """Fill with the inverse softplus of values log-uniform in [DT_MIN, DT_MAX]."""
    log_range = math.log(DT_MAX) - math.log(DT_MIN)
    dt = torch.exp(torch.rand_like(bias_E) * log_range + math.log(DT_MIN)).clamp(min=DT_FLOOR)
    bias_E.copy_(dt + torch.log(-torch.expm1(-dt)))


class MambaBlock(nn.Module):
    """Add, then RMSNorm, then mixer; the residual is carried apart in float32."""

    def __init__(self, dim: int, *, mixer: MambaMixer, drop_path: float, norm_eps: float):
        super().__init__()
        self.mixer = mixer
        self.norm = RMSNorm(dim, eps=norm_eps)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, hidden_BLD: Tensor, residual_BLD: Tensor | None) -> tuple[Tensor, Tensor]:
        """(hidden, residual) -> the mixer's output and the new residual."""
        if residual_BLD is not None:
            hidden_BLD = residual_BLD + self.drop_path(hidden_BLD)
        residual_BLD = hidden_BLD.to(torch.promote_types(hidden_BLD.dtype, torch.float32))
        return self.mixer(self.norm(residual_BLD)), residual_BLD


class PatchEmbed(nn.Module):
    """Non-overlapping tubes of pixels to tokens; a Conv3d's weights, one product's arithmetic."""

    def __init__(self, *, patch_size: int, tubelet: int, in_channels: int, embed_dim: int):
        super().__init__()
        kernel = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel, stride=kernel)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """video_BCTHW -> tokens_BTND."""
        B, C, F_, H, W = video_BCTHW.shape
        q, P, _ = self.proj.kernel_size
        tubes = video_BCTHW.reshape(B, C, F_ // q, q, H // P, P, W // P, P)
        tubes_BTNK = tubes.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(
            B, F_ // q, (H // P) * (W // P), C * q * P * P
        )
        return F.linear(tubes_BTNK, self.proj.weight.flatten(1), self.proj.bias)


class VideoMamba(nn.Module):
    """One class token in front of T*N patch tokens, frame by frame, through `depth` Mamba blocks.

    Args:
        image_size, patch_size, num_frames, tubelet: fix the position tables, in pixels and frames.
        embed_dim, depth: official sizes are 192x24 (tiny), 384x24 (small), 576x32 (middle).
        d_state, d_conv, expand: of every mixer (Mamba's defaults 16, 4, 2).
        drop_path: stochastic depth, linear from 0 as in the official code, and after the last block.
        norm_eps: of every RMSNorm.
        checkpointing: keep the input of every block only and compute it again in the backward pass; the
            same gradients for about a third more time.

    Initial values as in the official code (position table truncated normal 0.02, class token and
    temporal table zero, `out_proj` over sqrt(depth)), but for the biases that `MambaMixer` names.

    Raises ValueError if the patch does not divide the image or the tubelet the frames.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_frames: int,
        embed_dim: int,
        depth: int,
        in_channels: int = 3,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        tubelet: int = 1,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        checkpointing: bool = False,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} must divide image_size={image_size}")
        if num_frames % tubelet:
            raise ValueError(f"tubelet={tubelet} must divide num_frames={num_frames}")
        self.dim, self.in_channels, self.checkpointing = embed_dim, in_channels, checkpointing
        self.image_size, self.num_frames = image_size, num_frames
        N = (image_size // patch_size) ** 2
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, tubelet=tubelet, in_channels=in_channels, embed_dim=embed_dim
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + N, embed_dim))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, num_frames // tubelet, embed_dim))
        trunc_normal_(self.pos_embed, std=INIT_STD)
        rates = [0.0, *torch.linspace(0, drop_path, depth, device="cpu").tolist()]
        self.layers = nn.ModuleList(
            MambaBlock(
                embed_dim,
                mixer=MambaMixer(embed_dim, d_state=d_state, d_conv=d_conv, expand=expand, depth=depth),
                drop_path=rate,
                norm_eps=norm_eps,
            )
            for rate in rates[:depth]
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm_f = RMSNorm(embed_dim, eps=norm_eps)

    def embed(self, video_BCTHW: Tensor) -> Tensor:
        """Patches with both position tables, class token in front -> tokens_BLD."""
        patches_BTND = self.patch_embed(video_BCTHW)
        table_1LD, times_T1D = self.pos_embed, self.temporal_pos_embedding[0, :, None]
        patches_BTND = patches_BTND + table_1LD[:, None, 1:] + times_T1D
        cls_B1D = (self.cls_token + table_1LD[:, :1]).expand(patches_BTND.shape[0], -1, -1)
        return torch.cat([cls_B1D, patches_BTND.flatten(1, 2)], dim=1)

    def forward(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """video_BCTHW -> class token [B, D] and patches_BTND, both after the last norm.

        Raises ValueError if the video is not [B, in_channels, num_frames, image_size, image_size].
        """
        want = (self.in_channels, self.num_frames, self.image_size, self.image_size)
        if tuple(video_BCTHW.shape[1:]) != want:
            raise ValueError(f"expected a video [B, {', '.join(map(str, want))}], got "
                             f"{list(video_BCTHW.shape)}")  # fmt: skip
        hidden_BLD, residual_BLD = self.embed(video_BCTHW), None
        for block in self.layers:
            inputs = (hidden_BLD, residual_BLD)
            if self.checkpointing and torch.is_grad_enabled():
                hidden_BLD, residual_BLD = checkpoint(block, *inputs, use_reentrant=False)
            else:
                hidden_BLD, residual_BLD = block(*inputs)
        tokens_BLD = self.norm_f(residual_BLD + self.drop_path(hidden_BLD))
        T = self.temporal_pos_embedding.shape[1]
        return tokens_BLD[:, 0], tokens_BLD[:, 1:].unflatten(1, (T, -1))
