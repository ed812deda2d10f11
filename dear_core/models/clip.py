"""The frozen image tower and the features that a side network reads from it.

Why: Side4Video trains a small network beside an OpenCLIP ViT that never changes, so the tower is a
function of the frames alone. Here it is kept frozen and asked for the output of every residual block.

What it does not do: it builds no tower (`clip_towers` does), does not pool, project or normalise its
output, has no text tower, and does not prepare images (the caller scales and normalises the frames).

Legend: M frames (batch x time x modalities), C colours, H W pixels, N patches, L = 1 + N tokens
(class token first), D the tower's width.
"""

import hashlib

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


class FrozenTower(nn.Module):
    """An open_clip `VisionTransformer` that gives every block's tokens and never learns.

    The layers after the last block (`ln_post`, `proj`) are dropped: no one reads them, and the
    state keys that stay are the ones under `visual.` in a Side4Video checkpoint.

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
        self.forward_count = 0
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
        self.forward_count += 1
        frames_MCHW = frames_MCHW.to(self.visual.conv1.weight.dtype)
        out = self.visual.forward_intermediates(
            frames_MCHW, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
        )
        pairs = zip(
            out["image_intermediates_prefix"], out["image_intermediates"], strict=True
        )  # open_clip hands the class token and the patches over apart
        return tuple(torch.cat(pair, dim=1) for pair in pairs)


def tower_hash(tower: FrozenTower) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the tower's weights, as 64 hex digits."""
    digest = hashlib.sha256()
    for key, weight in sorted(tower.visual.state_dict().items()):
        digest.update(f"{key}|{weight.dtype}|{tuple(weight.shape)}|".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
