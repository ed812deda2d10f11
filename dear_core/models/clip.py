"""The frozen image tower and the features that a side network reads from it.

Why: Side4Video trains a small network beside an OpenCLIP ViT that never changes, so the tower is a
function of the frames alone. Here it is built (from open_clip's names, or small with random weights),
kept frozen, and asked for the output of every residual block.

What it does not do: it does not pool, project or normalise its output, it has no text tower, and it
does not prepare images (the caller scales and normalises the frames).

Legend: M frames (batch x time x modalities), C colours, H W pixels, N patches, L = 1 + N tokens
(class token first), D the tower's width.
"""

import hashlib
from pathlib import Path
from typing import Literal

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

Precision = Literal["fp32", "fp16", "bf16"]


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


def build_tower(
    name: str,
    *,
    pretrained: str | None = None,
    image_size: int | None = None,
    precision: Precision = "fp32",
    quick_gelu: bool | None = None,
) -> FrozenTower:
    """Build the image tower of an open_clip model.

    `pretrained` is a tag that open_clip lists for `name` or a checkpoint file on disk; None leaves
    open_clip's random weights. `quick_gelu=None` decides by the weights: a tag brings the activation
    it was trained with (OpenAI's need QuickGELU), a file or random weights take it from `name`
    (`ViT-B-16-quickgelu` has it); say True for a file that holds OpenAI's weights.
    Position tables are resized by open_clip where `image_size` differs from the checkpoint's.

    Raises ValueError for a name that open_clip does not know and for a `pretrained` that is neither.
    """
    if open_clip.get_model_config(name) is None:
        raise ValueError(f"open_clip knows no model {name!r}; see open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_tag = pretrained is not None and pretrained in tags
    if pretrained is not None and not is_tag and not Path(pretrained).is_file():
        raise ValueError(
            f"pretrained={pretrained!r} is neither a file nor a tag of {name!r}; the tags are {tags}"
        )
    if quick_gelu is None:
        tag_config = open_clip.get_pretrained_cfg(name, pretrained) if is_tag else {}
        quick_gelu = bool(tag_config.get("quick_gelu", False))
    model = open_clip.create_model(
        name,
        pretrained=pretrained,
        precision=precision,
        force_quick_gelu=quick_gelu,
        force_image_size=image_size,
    )
    return FrozenTower(model.visual, name=name)


def random_tower(
    *,
    width: int,
    layers: int,
    heads: int,
    patch_size: int,
    image_size: int,
    seed: int,
    quick_gelu: bool = True,
) -> FrozenTower:
    """A small open_clip vision tower whose weights depend on the arguments and `seed` alone.

    The weights come from a generator of its own, so the global random state is neither read nor
    moved. Standard deviations are those of OpenAI's CLIP (clip/model.py, `initialize_parameters`,
    which sets them for the text tower; the vision tower's tables there are width**-0.5 too).

    Raises ValueError if `heads` does not divide `width` or `patch_size` does not divide `image_size`.
    """
    if width % heads:
        raise ValueError(f"heads={heads} must divide width={width}")
    if image_size % patch_size:
        raise ValueError(f"patch_size={patch_size} must divide image_size={image_size}")
    with torch.device("meta"):
        visual = VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_ratio=4.0,
            output_dim=width,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
        )
    visual = visual.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in visual.named_parameters():
            _draw(key, weight, width=width, layers=layers, generator=generator)
    return FrozenTower(visual, name=f"random-w{width}-l{layers}-p{patch_size}-s{seed}")


def _draw(key: str, weight: Tensor, *, width: int, layers: int, generator: torch.Generator) -> None:
    """Fill one weight in place; biases are zero and LayerNorm scales are one."""
    stds = {
        "class_embedding": width**-0.5,
        "positional_embedding": width**-0.5,
        "conv1.weight": weight[0].numel() ** -0.5,  # unit variance from unit-variance pixels
        "proj": width**-0.5,
        "attn.in_proj_weight": width**-0.5,
        "attn.out_proj.weight": width**-0.5 * (2 * layers) ** -0.5,
        "mlp.c_fc.weight": (2 * width) ** -0.5,
        "mlp.c_proj.weight": width**-0.5 * (2 * layers) ** -0.5,
    }
    for suffix, std in stds.items():
        if key == suffix or key.endswith("." + suffix):
            weight.normal_(0.0, std, generator=generator)
            return
    assert weight.ndim == 1, f"no rule fills {key}"
    weight.fill_(1.0 if key.endswith("weight") else 0.0)


def tower_hash(tower: FrozenTower) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the tower's weights, as 64 hex digits."""
    digest = hashlib.sha256()
    for key, weight in sorted(tower.visual.state_dict().items()):
        digest.update(f"{key}|{weight.dtype}|{tuple(weight.shape)}|".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
