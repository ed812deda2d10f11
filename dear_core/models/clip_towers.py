"""Frozen towers by name: open_clip's models with their published weights, or small random ones.

Why: any ViT that open_clip knows can be the tower, and a demo or a test needs one without a download.
open_clip gives the architecture, the list of tags and the download; the file is read and placed by
`weight_files` and `weights`. open_clip's own loader wants the text tower too, cannot read OpenAI's original
file from a local path (torch.load refuses a TorchScript archive with weights_only=True), trips over the
sizes in a state dict made of it, and never chooses the activation for a file.

What it does not do: it does not run a tower (`clip` does) and downloads only what open_clip lists.

Legend: see `clip`.
"""

from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from dear_core.models.clip import FrozenTower
from dear_core.models.weight_files import WeightsError, read_state
from dear_core.models.weights import load_clip_visual, needs_quick_gelu

Precision = Literal["fp32", "fp16", "bf16"]
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}  # the smallest there is


def build_tower(
    name: str,
    *,
    pretrained: str | None = None,
    image_size: int | None = None,
    precision: Precision = "fp32",
    quick_gelu: bool | None = None,
) -> FrozenTower:
    """Build the image tower of an open_clip model.

    `pretrained` is a tag that open_clip lists for `name`, or a file: OpenAI's original archive or its state
    dict, what open_clip or LAION saved, with or without the wrapping of a training run, or a Side4Video
    checkpoint. None leaves random weights, drawn from the global random state.

    `quick_gelu=None` decides by the weights. A tag brings the activation it was trained with; a file of
    OpenAI's own form or Side4Video's has QuickGELU (`weights.needs_quick_gelu`); any other file, and random
    weights, take it from `name` (`ViT-B-16-quickgelu` has it), so say True for a file that open_clip made
    of OpenAI's weights. The position table is resampled where `image_size` differs from the file's.

    What was loaded is kept as `load_report` (`LoadReport`) on the tower that has weights.

    Raises WeightsError for weights that cannot be had, read or placed; ValueError for a name that open_clip
    does not know or that is no plain ViT.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"open_clip knows no model {name!r}; see open_clip.list_models()")
    state = None if pretrained is None else read_state(_path_of(name, pretrained))
    if quick_gelu is None:
        tag = tag_config(name, pretrained)
        if tag is not None:
            quick_gelu = bool(tag.get("quick_gelu", False))
        else:
            known = state is not None and needs_quick_gelu(state)
            quick_gelu = known or bool(config.get("quick_gelu", False))
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        tower = FrozenTower(_visual(config, quick_gelu=quick_gelu, precision=precision), name=name)
    if state is not None:
        tower.load_report = load_clip_visual(tower, state)
    return tower


def tag_config(name: str, pretrained: str | None) -> dict[str, object] | None:
    """What open_clip says of a tag of `name`; None if `pretrained` is not one, so a file or nothing."""
    return (open_clip.get_pretrained_cfg(name, pretrained) or None) if pretrained is not None else None


def _path_of(name: str, pretrained: str) -> Path:
    """The weights file: of a tag, downloaded to open_clip's cache if it is not there."""
    tag = tag_config(name, pretrained)
    if tag is not None:
        try:
            return Path(open_clip.download_pretrained(tag))
        except Exception as error:  # whatever the network and two download libraries raise
            reason = str(error).partition("\n")[0]
            raise WeightsError(
                f"open_clip's tag {pretrained!r} of {name!r} could not be downloaded ({reason}); "
                "without a network, give a local file"
            ) from error
    if not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise WeightsError(f"{pretrained!r} is neither a file nor a tag of {name!r}; the tags are {tags}")
    return Path(pretrained)


def _visual(config: dict[str, Any], *, quick_gelu: bool, precision: Precision) -> nn.Module:
    """The image tower of open_clip's configuration, beside a text tower that costs nothing."""
    dtype = open_clip.get_cast_dtype(precision)
    model = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=NO_TEXT,
        quick_gelu=quick_gelu,
        cast_dtype=dtype,
    )
    if dtype is not None:
        open_clip.convert_weights_to_lp(model, dtype=dtype)
    return model.visual


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
