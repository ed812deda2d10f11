"""The frozen image tower and the features that a side network reads from it.

Why: Side4Video trains a small network beside an OpenCLIP ViT that never changes, so the tower is a
function of the frames alone. Here it is kept frozen and asked for the output of every residual block.

What it does not do: it builds no tower (`clip_towers` does), does not pool, project or normalise its
output, has no text tower, and does not prepare images (the caller scales and normalises the frames).

Legend: M frames (batch x time x modalities), C colours, H W pixels, N patches, L = 1 + N tokens
(class token first), D the tower's width.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

QUICK_GELU_SLOPE = 1.702  # open_clip/transformer.py, QuickGELU
ONEDNN = torch.backends.mkldnn.is_available()


class FrozenTower(nn.Module):
    """An open_clip `VisionTransformer` that gives every block's tokens and never learns.

    The layers after the last block (`ln_post`, `proj`) are dropped: no one reads them, and the
    state keys that stay are the ones under `visual.` in a Side4Video checkpoint.

    It computes in the dtype of its weights, also under autocast: `tower.to(torch.bfloat16)` halves its
    memory, and nothing is cast again at every step. The blocks' arithmetic is written out here, because
    without a gradient it can be cheaper than the modules': half of its memory is written in place.

    Raises ValueError if `visual` is not a plain ViT with square images, or pools by attention.
    """

    def __init__(self, visual: VisionTransformer, *, name: str):
        super().__init__()
        if not isinstance(visual, VisionTransformer):
            raise ValueError(
                f"the tower {name!r} is a {type(visual).__name__}; only open_clip's "
                "VisionTransformer (names like 'ViT-B-16') gives the tokens of every block"
            )
        if visual.grid_size[0] != visual.grid_size[1]:
            raise ValueError(f"the tower {name!r} has a {visual.grid_size} grid; it must be square")
        self.name = name
        self.width: int = visual.transformer.width
        self.layers: int = visual.transformer.layers
        self.patch_size: int = visual.patch_size[0]
        self.image_size: int = visual.image_size[0]
        self.num_patches: int = visual.grid_size[0] * visual.grid_size[1]
        visual.prune_intermediate_layers(self.layers, prune_norm=True, prune_head=True)
        self.visual = visual.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stay in eval mode whatever `mode` says: a frozen tower has no training behaviour."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames_MCHW: Tensor) -> tuple[Tensor, ...]:
        """frames_MCHW, normalised -> `layers` tensors tokens_MLD, one a block, not normalised.

        Raises ValueError if the frames are not [M, 3, image_size, image_size].
        """
        want = (3, self.image_size, self.image_size)
        if frames_MCHW.ndim != 4 or tuple(frames_MCHW.shape[1:]) != want:
            raise ValueError(
                f"the tower {self.name!r} reads frames of shape [M, {', '.join(map(str, want))}], "
                f"got {list(frames_MCHW.shape)}"
            )
        taps = []
        with _own_precision(frames_MCHW.device.type):
            x_MLD = self._embed(frames_MCHW.to(self.visual.conv1.weight.dtype))
            for block in self.visual.transformer.resblocks:
                plain = type(block) is ResidualAttentionBlock
                x_MLD = residual_block(block, x_MLD) if plain else block(x_MLD)
                taps.append(x_MLD)
        return tuple(taps)

    def _embed(self, frames_MCHW: Tensor) -> Tensor:
        """Patches and the class token in front, with positions -> tokens_MLD."""
        visual = self.visual
        patches_MND = visual.conv1(frames_MCHW).flatten(2).transpose(1, 2)
        token_M1D = visual.class_embedding.to(patches_MND.dtype).expand(len(patches_MND), 1, -1)
        tokens_MLD = torch.cat([token_M1D, patches_MND], dim=1)
        return visual.ln_pre(tokens_MLD.add_(visual.positional_embedding.to(tokens_MLD.dtype)))


def _own_precision(device: str) -> AbstractContextManager:
    """No autocast inside; the meta device knows none."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def residual_block(block: ResidualAttentionBlock, x_MLD: Tensor) -> Tensor:
    """One block of the tower without gradients: x + attention(ln_1 x), then + mlp(ln_2 x) -> x_MLD."""
    attention, mlp = block.attn, block.mlp
    qkv = _linear(block.ln_1(x_MLD), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed_MLD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    update = _linear(mixed_MLD, attention.out_proj.weight, attention.out_proj.bias)
    x_MLD = block.ls_1(update).add_(x_MLD)
    hidden = _linear(block.ln_2(x_MLD), mlp.c_fc.weight, mlp.c_fc.bias)
    if type(mlp.gelu) is QuickGELU:
        hidden = torch.mul(hidden, QUICK_GELU_SLOPE).sigmoid_().mul_(hidden)
    else:
        hidden = mlp.gelu(hidden)
    return block.ls_2(_linear(hidden, mlp.c_proj.weight, mlp.c_proj.bias)).add_(x_MLD)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear; in float32 on a CPU as a 1x1 convolution, which oneDNN computes instead of MKL.

    MKL leaves AMD's AVX-512 unused: on such a machine the convolution is 1.2 to 1.4 times as fast, and as
    fast as MKL elsewhere.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not ONEDNN:
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def tower_hash(tower: FrozenTower) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the tower's weights, as 64 hex digits."""
    digest = hashlib.sha256()
    for key, weight in sorted(tower.visual.state_dict().items()):
        digest.update(f"{key}|{weight.dtype}|{tuple(weight.shape)}|".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
