"""Frozen towers by name: open_clip's models with their published weights, or small random ones.

Why: any ViT that open_clip knows can be the tower, and a demo or a test needs one without a download.

What it does not do: it does not run a tower (`clip` does) and downloads only what open_clip lists.

Legend: see `clip`.
"""

from pathlib import Path
from typing import Literal

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from dear_core.models.clip import FrozenTower

Precision = Literal["fp32", "fp16", "bf16"]


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
