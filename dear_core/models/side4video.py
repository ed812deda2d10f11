"""Side4Video: a trainable side network beside a frozen ViT, on channel-last tokens.

Why: only this network learns, and no gradient enters the tower. The arithmetic and the state keys are
those of the official model (HJYao00/Side4Video, Recognition/clip/model.py: `AttnCBlock`,
`Transformer`, `VisualTransformer`, keys below `visual.`), so its checkpoints load; the layout is not.
The official code moves between [B,D,T,h,w] and [N,BT,D] three times a block. Here tokens stay
[B,T,N,D]: a point-wise Conv3d is a linear layer, a depth-wise temporal one a Conv2d over the (T, N)
plane, the stem one matrix product over unfolded patches whose three results are shifted and added.

What it does not do: it does not run the tower (the caller passes its tokens) and it has no classifier.

Legend: B clips, C colours, T frames, H W pixels, P patch side, N patches a frame, D side width,
W tower width, h heads.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dear_core.models.batch_norm import ChannelLastBatchNorm, Moments

HEAD_WIDTH = 64  # official AttnCBlock: nn.MultiheadAttention(dim, dim // 64)


def temporal_taps(tap_past: Tensor, tap_now: Tensor, tap_next: Tensor) -> Tensor:
    """Sum three [B,T,...] tensors, the first delayed and the last advanced by one frame.

    This is a temporal convolution of kernel 3 with zero padding 1, once its products are taken:
    out[t] = past[t-1] + now[t] + next[t+1], absent frames counting as zero.
    """
    out = tap_now.clone()
    out[:, 1:] += tap_past[:, :-1]
    out[:, :-1] += tap_next[:, 1:]
    return out


def shift_class_token(token_BTD: Tensor) -> Tensor:
    """Give each frame half the channels of the next frame's token and half of the last one's.

    Channels [0, D/2) come from t+1, the rest from t-1, zeros beyond the ends (official
    `AttnCBlock.shift_token`).
    """
    half = token_BTD.shape[-1] // 2
    out = torch.zeros_like(token_BTD)
    out[:, :-1, :half] = token_BTD[:, 1:, :half]
    out[:, 1:, half:] = token_BTD[:, :-1, half:]
    return out


class PatchAttention(nn.Module):
    """Self-attention whose queries are the patches only; the class token is key and value.

    Parameters are named and shaped as nn.MultiheadAttention's.
    """

    def __init__(self, *, dim: int):
        super().__init__()
        self.heads = dim // HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens_MLD: Tensor) -> Tensor:
        """tokens_MLD with the class token first -> patches [M, L-1, D]."""
        M, L, D = tokens_MLD.shape
        q = F.linear(tokens_MLD[:, 1:], self.in_proj_weight[:D], self.in_proj_bias[:D])
        kv = F.linear(tokens_MLD, self.in_proj_weight[D:], self.in_proj_bias[D:])
        q_MhLd = q.view(M, L - 1, self.heads, HEAD_WIDTH).transpose(1, 2)
        k_MhLd, v_MhLd = kv.view(M, L, 2, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        out_MhLd = F.scaled_dot_product_attention(q_MhLd, k_MhLd, v_MhLd)
        return self.out_proj(out_MhLd.transpose(1, 2).reshape(M, L - 1, D))


class SideMlp(nn.Module):
    """Two linear layers with an exact GELU between (official `CMlp`)."""

    def __init__(self, *, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SideBlock(nn.Module):
    """Temporal convolution, spatial attention, MLP; each added to the patches (`AttnCBlock`).

    Initial values follow the official constructor on purpose: its rules for the convolutions name
    layers that do not exist (`pw_conv1`, ...), so these keep torch's default, and the output scale
    counts 12 layers whatever the depth.
    """

    def __init__(self, *, dim: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.bn_1 = ChannelLastBatchNorm(dim)
        self.conv = nn.Sequential(
            nn.Conv3d(dim, dim, 1),
            nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0), groups=dim),
            nn.Conv3d(dim, dim, 1),
        )  # holds the weights; `_temporal` does the arithmetic
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.bn_2 = ChannelLastBatchNorm(dim)
        self.mlp = SideMlp(dim=dim, hidden=int(dim * mlp_ratio))
        self.attn = PatchAttention(dim=dim)
        self.ln_1 = nn.LayerNorm(dim)
        out_std = dim**-0.5 * (2 * 12) ** -0.5
        nn.init.normal_(self.mlp.fc1.weight, std=(2 * dim) ** -0.5)
        nn.init.normal_(self.mlp.fc2.weight, std=out_std)
        nn.init.normal_(self.attn.in_proj_weight, std=dim**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=out_std)

    def _temporal(self, x_BTND: Tensor) -> Tensor:
        first, depthwise, last = self.conv
        x = F.linear(x_BTND, first.weight.flatten(1), first.bias)
        # A (T, N) image of D channels in channel-last memory: no copy, and torch's quickest kernel.
        x_BDTN = F.conv2d(
            x.permute(0, 3, 1, 2),
            depthwise.weight.flatten(3),
            depthwise.bias,
            padding=(1, 0),
            groups=depthwise.groups,
        )
        x = x_BDTN.permute(0, 2, 3, 1)
        return F.linear(x, last.weight.flatten(1), last.bias)

    def forward(
        self, x_BTND: Tensor, token_BTD: Tensor, position_ND: Tensor
    ) -> tuple[Tensor, tuple[Moments | None, Moments | None]]:
        """Patches, the tower's class tokens and the side position table -> patches_BTND.

        With it come the moments of both batch norms: `track` takes them, once a batch.
        """
        B, T, N, D = x_BTND.shape
        normed_BTND, moments_1 = self.bn_1.normalise(x_BTND)
        x_BTND = x_BTND + self.drop_path(self._temporal(normed_BTND))
        tokens_BTLD = torch.cat([shift_class_token(token_BTD)[:, :, None], x_BTND + position_ND], dim=2)
        mixed = self.attn(self.ln_1(tokens_BTLD).view(B * T, 1 + N, D))
        x_BTND = x_BTND + self.drop_path(mixed.view(B, T, N, D))
        normed_BTND, moments_2 = self.bn_2.normalise(x_BTND)
        return x_BTND + self.drop_path(self.mlp(normed_BTND)), (moments_1, moments_2)

    def track(self, moments: tuple[Moments | None, Moments | None]) -> None:
        """Move the running statistics of both batch norms by one step."""
        self.bn_1.track(moments[0])
        self.bn_2.track(moments[1])


class SideTransformer(nn.Module):
    """One SideBlock a tower block, fed half by the tower (official `Transformer`).

    The official initialiser of `side_linears` reaches the copies in CLIP's text tower only, so the
    ones that run keep torch's default for nn.Linear; so do these.
    """

    def __init__(
        self,
        *,
        tower_width: int,
        tower_layers: int,
        num_patches: int,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        checkpointing: bool,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        rates = torch.linspace(0, drop_path, tower_layers, device="cpu").tolist()
        self.side_lns = nn.ModuleList(nn.LayerNorm(tower_width) for _ in rates)
        self.side_linears = nn.ModuleList(nn.Linear(tower_width, dim) for _ in rates)
        self.side_transformer = nn.ModuleList(
            SideBlock(dim=dim, mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates
        )
        self.side_spatial_position_embeddings = nn.Parameter(torch.empty(num_patches, dim))
        nn.init.normal_(self.side_spatial_position_embeddings, std=0.01)

    def forward(self, x_BTND: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """Stem tokens and the tower's tokens [B*T,1+N,W] of every block -> patches_BTND."""
        B, T, N, D = x_BTND.shape
        layers = zip(taps, self.side_lns, self.side_linears, self.side_transformer, strict=True)
        for tap_MLW, norm, linear, block in layers:
            side_MLD = linear(norm(tap_MLW.to(norm.weight.dtype)))
            side_BTLD = side_MLD.view(B, T, 1 + N, D)
            x_BTND = 0.5 * x_BTND + 0.5 * side_BTLD[:, :, 1:]
            inputs = (x_BTND, side_BTLD[:, :, 0], self.side_spatial_position_embeddings)
            if self.checkpointing and torch.is_grad_enabled():
                x_BTND, moments = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x_BTND, moments = block(*inputs)
            block.track(moments)
        return x_BTND


class Side4Video(nn.Module):
    """The side network: a clip and the frozen tower's tokens in, patch features out.

    The official model's features are the mean of the output over T and N.

    Args:
        tower_width, tower_layers: of the frozen tower that is tapped (ViT-B: 768, 12).
        patch_size, image_size: in pixels; the grid must be the tower's.
        num_frames: frames a clip usually has; no weight depends on it and any T >= 1 runs.
        dim: side width, a multiple of 64 (official SSV2 configuration for ViT-B/16: 320).
        mlp_ratio: hidden width of the MLP over dim (official: 4).
        drop_path: rate at the last block, linear from 0 (official code leaves it at 0).
        checkpointing: keep the input of every block only and compute it again in the backward pass; the
            same gradients for about a third more time.

    Raises ValueError if `dim` is no multiple of 64 or the patch does not divide the image.
    """

    in_channels = 3

    def __init__(
        self,
        *,
        tower_width: int,
        tower_layers: int,
        patch_size: int,
        image_size: int,
        num_frames: int,
        dim: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ):
        super().__init__()
        if dim % HEAD_WIDTH or dim <= 0:
            raise ValueError(f"dim={dim} must be a positive multiple of {HEAD_WIDTH}")
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} must divide image_size={image_size}")
        self.dim, self.num_frames = dim, num_frames
        self.patch_size, self.image_size = patch_size, image_size
        self.tower_width, self.tower_layers = tower_width, tower_layers
        self.num_patches = (image_size // patch_size) ** 2
        self.side_conv1 = nn.Conv3d(
            3, dim, (3, patch_size, patch_size), stride=(1, patch_size, patch_size), padding=(1, 0, 0)
        )  # holds the weights; `stem` does the arithmetic
        self.side_pre_bn3d = ChannelLastBatchNorm(dim)
        self.transformer = SideTransformer(
            tower_width=tower_width,
            tower_layers=tower_layers,
            num_patches=self.num_patches,
            dim=dim,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            checkpointing=checkpointing,
        )
        self.side_post_bn = ChannelLastBatchNorm(dim)

    def stem(self, video_BCTHW: Tensor) -> Tensor:
        """Conv3d of kernel (3, P, P), stride (1, P, P), padding (1, 0, 0) as one product."""
        B, C, T, H, W = video_BCTHW.shape
        P, D = self.patch_size, self.dim
        patches = video_BCTHW.view(B, C, T, H // P, P, W // P, P).permute(0, 2, 3, 5, 1, 4, 6)
        patches_BTNK = patches.reshape(B, T, (H // P) * (W // P), C * P * P)
        weight = self.side_conv1.weight.transpose(1, 2).reshape(D, 3, C * P * P)
        past, now, following = F.linear(patches_BTNK, weight.transpose(0, 1).flatten(0, 1)).chunk(3, dim=-1)
        return temporal_taps(past, now + self.side_conv1.bias, following)

    def forward(self, video_BCTHW: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """video_BCTHW and `tower_layers` tensors [B*T, 1+N, W] -> patches_BTND.

        Raises ValueError if the video or the taps have another shape than the constructor's.
        """
        self._check(video_BCTHW, taps)
        x_BTND = self.side_pre_bn3d(self.stem(video_BCTHW.contiguous()))
        return self.side_post_bn(self.transformer(x_BTND, taps))

    def _check(self, video_BCTHW: Tensor, taps: Sequence[Tensor]) -> None:
        S = self.image_size
        shape = tuple(video_BCTHW.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[3:] != (S, S):
            raise ValueError(f"expected a video [B, 3, T, {S}, {S}], got {list(shape)}")
        want = (shape[0] * shape[2], 1 + self.num_patches, self.tower_width)
        if len(taps) != self.tower_layers:
            raise ValueError(f"expected {self.tower_layers} taps, one a block, got {len(taps)}")
        for index, tap in enumerate(taps):
            if tuple(tap.shape) != want:
                raise ValueError(f"tap {index} must be {list(want)}, got {list(tap.shape)}")
