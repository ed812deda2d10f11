"""Official checkpoints into these modules, strictly.

Why: Side4Video's and VideoMamba's published files are the contract for key names. Loading says what
was used, what was absent and what was left over, and refuses a file that does not fit, so that
nothing trains on by accident without its weights.

What it does not do: it reads no files and downloads nothing (the caller passes a state dict), and it
does not place the classifier, which comes back apart because its classes may differ.

Legend: q frames a tube; shapes otherwise as in the modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dear_core.models.clip import FrozenTower
from dear_core.models.side4video import Side4Video
from dear_core.models.videomamba import VideoMamba

WRAPPERS = ("model_state_dict", "model", "state_dict", "module")
TOWER_PARTS = (
    "conv1.",
    "class_embedding",
    "positional_embedding",
    "ln_pre.",
    "transformer.resblocks.",
)


@dataclass(frozen=True)
class LoadReport:
    """Keys, as the module names them: read, absent from the file, and in the file without a place."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_side4video(
    module: Side4Video, state: Mapping[str, object], *, strict: bool = True
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Load the side network of an official Side4Video file; returns (report, head).

    The head is `fc.*` as {"weight": [K, D], "bias": [K]} (empty if the file has none). The frozen
    tower's keys in the file are passed over (see `load_clip_visual`).

    Raises ValueError, and loads nothing, if `strict` and keys are missing or unexpected; and always
    if a shape differs.
    """
    flat = _unwrap(state)
    side = {
        key.removeprefix("visual."): value
        for key, value in flat.items()
        if key.startswith("visual.") and not _is_tower(key.removeprefix("visual."))
    }
    return _load(module, side, strict=strict), _head(flat, "fc.")


def load_videomamba(
    module: VideoMamba, state: Mapping[str, object], *, strict: bool = True
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Load an official VideoMamba file, of video or of images; returns (report, head).

    An image model has a 4-d patch kernel, which goes to the middle of the tube, zeros around it, and no
    temporal table, which then keeps its value and is reported missing (official
    videomamba.py, `inflate_weight` with center=True). The head is `head.*`, as {"weight", "bias"}.

    Raises ValueError as `load_side4video` does.
    """
    flat = _unwrap(state)
    own = {key: value for key, value in flat.items() if not key.startswith("head.")}
    optional: tuple[str, ...] = ()
    kernel = own.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        q = module.patch_embed.proj.kernel_size[0]
        tube = kernel.new_zeros(*kernel.shape[:2], q, *kernel.shape[2:])
        tube[:, :, q // 2] = kernel
        own["patch_embed.proj.weight"] = tube
        optional = ("temporal_pos_embedding",)
    return _load(module, own, strict=strict, optional=optional), _head(flat, "head.")


def load_clip_visual(tower: FrozenTower, state: Mapping[str, object], *, strict: bool = True) -> LoadReport:
    """Load the frozen tower from the `visual.*` keys of a Side4Video or CLIP file.

    `visual.ln_post.*` and `visual.proj` of a CLIP file are passed over: the tower has no such layers.

    Raises ValueError as `load_side4video` does.
    """
    flat = _unwrap(state)
    visual = {
        key.removeprefix("visual."): value
        for key, value in flat.items()
        if key.startswith("visual.") and _is_tower(key.removeprefix("visual."))
    }
    return _load(tower.visual, visual, strict=strict)


def _is_tower(key: str) -> bool:
    return key.startswith((*TOWER_PARTS, "ln_post.", "proj"))


def _unwrap(state: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of its wrapping and without a `module.` prefix."""
    for wrapper in WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            return _unwrap(inner)
    flat = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not flat:
        raise ValueError(
            f"the state holds no tensors; expected a state dict, bare or under one of {WRAPPERS}"
        )
    return flat


def _head(flat: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): v for key, v in flat.items() if key.startswith(prefix)}


def _load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    strict: bool,
    optional: tuple[str, ...] = (),
) -> LoadReport:
    own = module.state_dict()
    loaded = tuple(key for key in own if key in state)
    missing = tuple(key for key in own if key not in state)
    # open_clip's CLIP drops `ln_post` and `proj` here, a file may still carry them
    dropped = ("ln_post.", "proj") if "conv1.weight" in own else ()
    unexpected = tuple(k for k in state if k not in own and not (dropped and k.startswith(dropped)))
    misfits = [
        f"{key} is {list(state[key].shape)}, the module's is {list(own[key].shape)}"
        for key in loaded
        if state[key].shape != own[key].shape
    ]
    if misfits:
        raise ValueError(f"{len(misfits)} shapes differ, nothing loaded: {'; '.join(misfits[:3])}")
    absent = [key for key in missing if key not in optional]
    if strict and (absent or unexpected):
        raise ValueError(
            f"the state does not fit {type(module).__name__}, nothing loaded: "
            f"missing {absent[:3]} ({len(absent)}), unexpected {list(unexpected[:3])} "
            f"({len(unexpected)})"
        )
    with torch.no_grad():
        module.load_state_dict({key: state[key] for key in loaded}, strict=False)
    return LoadReport(loaded=loaded, missing=missing, unexpected=unexpected)
