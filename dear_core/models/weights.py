"""Official checkpoints into these modules, strictly.

Why: Side4Video's, VideoMamba's and CLIP's published files are the contract for key names. Loading says what
was used, reshaped, absent and passed over, and refuses a file that does not fit, so that nothing trains
on by accident without its weights. A refused file changes nothing.

What it does not do: it reads no files (`weight_files` does, the caller passes what it gave) and downloads
nothing, and it does not place the classifier, which comes back apart because its classes may differ.

A key of the file belongs to the module, or to something named below that the module has no place for; any
other is unexpected. A layer that would change what a named part computes (temporal layers in the tower,
`visual.time_embedding`, LayerNorm biases in VideoMamba) is deliberately not named, so it refuses the file.

Legend: q frames a tube; shapes otherwise as in the modules.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dear_core.models.clip import FrozenTower
from dear_core.models.load_report import LoadReport, Reshaped
from dear_core.models.positions import resize_grid, resize_time
from dear_core.models.side4video import Side4Video
from dear_core.models.videomamba import VideoMamba
from dear_core.models.weight_files import WeightsError

WRAPPERS = ("model_state_dict", "model", "state_dict", "module")
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own files only
TABLE = "positional_embedding"  # the tower's

# (reason, pattern of whole keys), the first that fits counts.
_BLOCK = r"(ln_[12]|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)|attn\.in_proj_(weight|bias)"
_TOWER = (
    "frozen tower",
    r"visual\.(conv1\.weight|class_embedding|positional_embedding|ln_pre\.(weight|bias)"
    rf"|transformer\.resblocks\.\d+\.({_BLOCK}))",
)
_CLIP = (
    ("CLIP's output layers", r"visual\.(ln_post\..+|proj)"),
    # Side4Video's text tower is the same class as its image tower, with side layers that never run
    ("side layers of the text tower, never used", r"transformer\.side_.+"),
    (
        "text tower",
        r"(transformer|ln_final|token_embedding|text|text_decoder)\..+"
        r"|positional_embedding|text_projection|logit_scale|logit_bias|attn_mask",
    ),
    ("OpenAI's marks", "|".join(OPENAI_MARKS)),
    # video_clip.py `video_header`: Side4Video's features are one a clip, so it is never called
    ("fusion over frames, never used", r"fusion_model\..+"),
)
_SIDE = ("side network", r"visual\.(transformer\.)?side_.+")
_HEAD = ("classifier", r"fc\..+")
_MAMBA = (
    # videomamba_pretrain.py; its `norm` has no place in the official fine-tuning model either
    ("masked pretraining", r"clip_decoder\..+|clip_pos_embed|clip_img_pos_embed|norm\.(weight|bias)"),
    ("pooling of the video-text model", r"pool_norm\..+"),
    ("distillation head", r"distill_head\..+|head_dist\..+"),
)
_BESIDE = "beside the weights that were read"

Rules = Mapping[str, tuple[str, Callable[[Tensor, torch.Size], Tensor]]]


def load_side4video(
    module: Side4Video, state: Mapping[str, object], *, strict: bool = True
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Load the side network of an official Side4Video file; returns (report, head).

    The head is `fc.*` as {"weight": [K, D], "bias": [K]} (empty if the file has none). The frozen
    tower's keys in the file are passed over (`load_clip_visual` reads them, `tower_difference` compares
    them). The position table is resampled if the grid differs.

    Raises WeightsError, and loads nothing, if `strict` and keys are missing or unexpected; and always
    if a shape differs or a weight is no finite number.
    """
    flat, beside = _flatten(state)
    head = _take(flat, "fc.")
    sorted_keys = _sort(flat, module, prefix="visual.", ignored=(_TOWER, *_CLIP))
    name = "transformer.side_spatial_position_embeddings"
    rules: Rules = {name: ("bicubic with antialias", _grid(class_tokens=0, antialias=True))}
    return _load(module, sorted_keys, head=head, beside=beside, rules=rules, strict=strict), head


def load_videomamba(
    module: VideoMamba, state: Mapping[str, object], *, strict: bool = True
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Load an official VideoMamba file of images, videos or masked pretraining; returns (report, head).

    An image model has a 4-d patch kernel, which goes to the middle of the tube, zeros around it
    (official videomamba.py: every model calls `load_state_dict` with center=True), and no temporal
    table, which then keeps its value and is reported missing. So does `norm_f` with a file of masked
    pretraining, as in the official fine-tuning. Position tables are resampled as
    run_class_finetuning.py does. The head is `head.*`, as {"weight", "bias"}.

    Raises WeightsError as `load_side4video` does.
    """
    flat, beside = _flatten(state, prefixes=("module.", "backbone.", "encoder."))
    head = _take(flat, "head.")
    optional: tuple[str, ...] = ()
    kernel = flat.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        optional = ("temporal_pos_embedding",)
    if any(key.startswith("clip_decoder.") for key in flat):
        optional += ("norm_f.weight",)
    rules: Rules = {
        "patch_embed.proj.weight": ("in the middle of the tube, zeros around", _inflate),
        "pos_embed": ("bicubic", _grid(class_tokens=1, antialias=False)),
        "temporal_pos_embedding": ("linear over time", lambda table, to: resize_time(table, to[1])),
    }
    sorted_keys = _sort(flat, module, prefix="", ignored=_MAMBA)
    report = _load(
        module, sorted_keys, head=head, beside=beside, rules=rules, strict=strict, optional=optional
    )
    return report, head


def load_clip_visual(tower: FrozenTower, state: Mapping[str, object], *, strict: bool = True) -> LoadReport:
    """Load the frozen tower from the `visual.*` keys of a CLIP or Side4Video file.

    `visual.ln_post.*` and `visual.proj` of a CLIP file are passed over, the tower has no such layers; so
    are the text tower and the side network. The position table is resampled as open_clip does.

    Raises WeightsError as `load_side4video` does.
    """
    flat, beside = _flatten(state)
    sorted_keys = _sort(flat, tower.visual, prefix="visual.", ignored=(*_CLIP, _SIDE, _HEAD))
    return _load(tower.visual, sorted_keys, head={}, beside=beside, rules=_TOWER_RULES, strict=strict)


def needs_quick_gelu(state: Mapping[str, object]) -> bool:
    """Whether a CLIP or Side4Video file says by its keys that its tower was trained with QuickGELU.

    OpenAI's files hold their sizes as tensors; Side4Video's tower is OpenAI's, with QuickGELU written into
    its blocks (clip/model.py, `ResidualAttentionBlock`). Files that open_clip wrote do not say.
    """
    flat, _ = _flatten(state)
    side = any(re.fullmatch(_SIDE[1], key) for key in flat)
    return side or all(mark in flat for mark in OPENAI_MARKS)


def tower_difference(tower: FrozenTower, state: Mapping[str, object]) -> tuple[int, tuple[str, ...]]:
    """(tensors of the tower that the file holds, names of those that differ from the tower in use).

    Compared exactly, at the lower of both precisions (a file in fp16 matches the same weights in fp32),
    and after the position table is resampled to the tower's grid.
    """
    flat, _ = _flatten(state)
    held = {key.removeprefix("visual."): flat[key] for key in flat if re.fullmatch(_TOWER[1], key)}
    own = tower.visual.state_dict()
    differ = []
    for key, value in held.items():
        if key in own and key in _TOWER_RULES and value.shape != own[key].shape:
            value = _TOWER_RULES[key][1](value, own[key].shape)
        if key not in own or value.shape != own[key].shape or not _equal(value, own[key].cpu()):
            differ.append(key)
    return len(held), tuple(differ)


def _equal(one: Tensor, other: Tensor) -> bool:
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow), other.to(narrow))


def _grid(*, class_tokens: int, antialias: bool) -> Callable[[Tensor, torch.Size], Tensor]:
    return lambda table, to: resize_grid(table, to[-2], class_tokens=class_tokens, antialias=antialias)


def _inflate(kernel: Tensor, to: torch.Size) -> Tensor:
    """A kernel of images [D, C, P, P] to one of tubes [D, C, q, P, P]."""
    if kernel.ndim != 4:
        return kernel
    tube = kernel.new_zeros(*kernel.shape[:2], to[2], *kernel.shape[2:])
    tube[:, :, to[2] // 2] = kernel
    return tube


_TOWER_RULES: Rules = {TABLE: ("bicubic with antialias", _grid(class_tokens=1, antialias=True))}


def _flatten(
    state: Mapping[str, object], prefixes: Sequence[str] = ("module.",)
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(tensors out of their wrapping and prefixes, names of other groups of tensors beside them)."""
    for wrapper in WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            flat, beside = _flatten(inner, prefixes)
            others = [key for key, value in state.items() if key != wrapper and _holds_tensors(value)]
            return flat, (*others, *beside)
    flat = {}
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            for prefix in prefixes:
                key = key.removeprefix(prefix)
            flat[key] = value.detach()
    if not flat:
        raise WeightsError(f"it holds no tensors; expected a state dict, bare or under one of {WRAPPERS}")
    return flat, ()


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values())


def _take(flat: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove and return the keys below a prefix, without it."""
    return {key.removeprefix(prefix): flat.pop(key) for key in list(flat) if key.startswith(prefix)}


@dataclass(frozen=True)
class _Sorted:
    own: dict[str, Tensor]  # by the module's names
    ignored: dict[str, tuple[str, ...]]  # by reason, the file's names
    unexpected: tuple[str, ...]  # the file's names


def _sort(
    flat: Mapping[str, Tensor], module: nn.Module, *, prefix: str, ignored: Sequence[tuple[str, str]]
) -> _Sorted:
    places = module.state_dict().keys()
    own, passed, unexpected = {}, {}, []
    for key, value in flat.items():
        reason = next((name for name, pattern in ignored if re.fullmatch(pattern, key)), None)
        if key.startswith(prefix) and key.removeprefix(prefix) in places:
            own[key.removeprefix(prefix)] = value
        elif reason is not None:
            passed.setdefault(reason, []).append(key)
        else:
            unexpected.append(key)
    return _Sorted(own, {reason: tuple(keys) for reason, keys in passed.items()}, tuple(unexpected))


def _load(
    module: nn.Module,
    found: _Sorted,
    *,
    head: Mapping[str, Tensor],
    beside: tuple[str, ...],
    rules: Rules,
    strict: bool,
    optional: Sequence[str] = (),
) -> LoadReport:
    """Check everything, then copy; the copy itself cannot fail."""
    own = module.state_dict()
    missing = tuple(key for key in own if key not in found.own)
    absent = [key for key in missing if key not in optional]
    fitted, reshaped = _fit(own, found.own, rules)
    if strict and (absent or found.unexpected):
        raise WeightsError(
            f"it does not fit {type(module).__name__}, nothing loaded: missing {absent[:3]} "
            f"({len(absent)}), unexpected {list(found.unexpected[:3])} ({len(found.unexpected)})"
        )
    named_head = {f"the classifier's {key}": value for key, value in head.items()}
    for key, value in (fitted | named_head).items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{key} holds NaN or infinite weights, nothing loaded")
    module.load_state_dict(fitted, strict=False)
    ignored = {**found.ignored, **({_BESIDE: beside} if beside else {})}
    loaded = tuple(key for key in own if key in fitted)
    return LoadReport(loaded, missing, found.unexpected, reshaped, ignored)


def _fit(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], rules: Rules
) -> tuple[dict[str, Tensor], tuple[Reshaped, ...]]:
    """The file's tensors in the shapes and types of the module's."""
    fitted, reshaped, misfits = {}, [], []
    for key, value in found.items():
        want, before = own[key], value.shape
        if value.is_floating_point() != want.is_floating_point():
            raise WeightsError(f"{key} is of {value.dtype}, the module's of {want.dtype}, nothing loaded")
        if key in rules and before != want.shape and before[-1:] == want.shape[-1:]:
            how, reshape = rules[key]
            value = reshape(value, want.shape)
            reshaped.append(Reshaped(key, tuple(before), tuple(want.shape), how))
        if value.shape != want.shape:
            misfits.append(f"{key} is {list(before)}, the module's is {list(want.shape)}")
        fitted[key] = value.to(want.dtype)
    if misfits:
        raise WeightsError(f"{len(misfits)} shapes differ, nothing loaded: {'; '.join(misfits[:3])}")
    return fitted, tuple(reshaped)
