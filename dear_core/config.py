"""``RunConfig``: everything one training run is, as one validated value.

The same dotted keys (``train.lr``, ``model.branches``) serve YAML, ``--set``, the search space, MLflow's
parameters, the checkpoint and the report. Unknown keys are refused. A run is found by its key: the hash of
every value that can change the result and of none that cannot (paths, loader threads, caches).

This module knows no torch, no Ray, no files.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from dear_core.errors import InputError

Modality = Literal["rgb", "depth"]
Encoder = Literal["side4video", "videomamba"]


def _no_result(default: Any, description: str) -> Any:
    """A field that cannot change the result: it stays out of the run's key."""
    return Field(default, description=description, json_schema_extra={"affects_result": False})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Branch(_Part):
    """One encoder on one modality; written ``modality:encoder``, for example ``depth:videomamba``."""

    modality: Modality
    encoder: Encoder

    def __str__(self) -> str:
        return f"{self.modality}:{self.encoder}"

    @property
    def title(self) -> str:
        """The paper's word for it: Side4Video is the default encoder and goes unnamed (Table 1)."""
        name = {"rgb": "RGB", "depth": "Depth"}[self.modality]
        return name if self.encoder == "side4video" else f"{name}(VideoMamba)"


def _parse_branch(value: Any) -> Any:
    if isinstance(value, str):
        modality, separator, encoder = value.partition(":")
        if not separator:
            raise ValueError(f"'{value}' is not MODALITY:ENCODER, for example depth:videomamba")
        return {"modality": modality.strip(), "encoder": encoder.strip()}
    return value


BranchField = Annotated[Branch, BeforeValidator(_parse_branch), PlainSerializer(str)]


class DataConfig(_Part):
    """Which clips, and how a clip becomes a tensor."""

    format: Literal["ssv2"] = Field("ssv2", description="Form of the data set on disk.")
    root: str = _no_result("data/demo", "Folder that holds the annotations and videos/.")
    videos: str | None = _no_result(None, "Folder of the videos; default ROOT/videos.")
    depth_root: str | None = _no_result(None, "Depth store; default ROOT/depth.")
    identity: str | None = Field(
        None, description="Hash of annotations, file sizes and depth store; filled in at the start."
    )
    num_frames: int = Field(8, ge=1, description="Frames a clip (paper section 3: 8).")
    short_side: int = Field(
        256, ge=16, description="Videos are decoded with their shorter side at this many pixels."
    )
    crop_size: int = Field(224, ge=16, description="Side of the square network input, in pixels.")
    train_scale: tuple[float, float] = Field(
        (0.5, 1.0), description="Random resized crop: share of the image's area, lowest and highest."
    )
    flip: bool = Field(
        True,
        description="Flip half the training clips; labels that differ by left/right are exchanged.",
    )
    colour_jitter: float = Field(
        0.0, ge=0, le=1, description="Brightness, contrast and saturation jitter of RGB in training."
    )
    cache_dir: str | None = _no_result(
        None, "Folder for decoded frames, decoded once for all epochs and runs; none: decode always."
    )
    workers: int = _no_result(0, "Loader processes a training worker; 0 loads in the worker itself.")


class TowerConfig(_Part):
    """The frozen OpenCLIP ViT whose every block Side4Video reads."""

    name: str = Field(
        "ViT-B-16", description="An open_clip model name, or 'random' for a small tower made here."
    )
    pretrained: str | None = Field(
        "openai",
        description="open_clip's tag of the weights, or a local file (CLIP's or Side4Video's); for 'random' "
        "none. A file is known by its content, so it may move.",
    )
    pretrained_identity: str | None = Field(
        None, description="Hash of the weights file, none for a tag; filled in at the start."
    )
    quick_gelu: bool | None = Field(
        None,
        description="QuickGELU (true) or GELU (false) in the blocks. None: by the weights. A tag says so; "
        "the original files of OpenAI and Side4Video are recognised: QuickGELU, as a random tower has; "
        "any other file goes by the name, so say true for OpenAI's weights converted by open_clip.",
    )
    width: int = Field(768, ge=8, description="Of a random tower.")
    layers: int = Field(12, ge=1, description="Of a random tower.")
    heads: int = Field(12, ge=1, description="Of a random tower.")
    patch_size: int = Field(16, ge=2, description="Of a random tower, in pixels.")
    seed: int = Field(
        0, description="Of weights that no file gives ('random', or no pretrained); no run's seed moves it."
    )


class Side4VideoConfig(_Part):
    """Side network beside the tower (Side4Video, arXiv 2311.15769)."""

    dim: int = Field(320, ge=64, description="Side width; its SSV2 recipe for ViT-B/16 has 320.")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Stochastic depth at the last block; it grows linearly from 0."
    )
    pretrained: str | None = _no_result(
        None,
        "A Side4Video file to start every such branch from; its classifier is not used. Its frozen tower "
        "must be the one in use (name the same file in model.tower.pretrained to use it).",
    )
    pretrained_identity: str | None = Field(None, description="Hash of that file; filled in at the start.")


class VideoMambaConfig(_Part):
    """Bidirectional Mamba over all patches of a clip (VideoMamba, arXiv 2403.06977)."""

    embed_dim: int = Field(384, ge=16, description="Ti 192, S 384, M 576.")
    depth: int = Field(24, ge=1, description="Ti 24, S 24, M 32.")
    patch_size: int = Field(16, ge=2, description="Pixels.")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="Stochastic depth at the last block; it grows linearly from 0."
    )
    pretrained: str | None = _no_result(
        None,
        "A VideoMamba file to start every such branch from: of images, of videos or of masked pretraining; "
        "its classifier is not used.",
    )
    pretrained_identity: str | None = Field(None, description="Hash of that file; filled in at the start.")


class FusionConfig(_Part):
    """How branches become streams of scores, and these one (paper section 2; docs/fusion.md).

    The paper fixes cross-attention both ways between RGB and each depth branch, a gate, and the mean of
    the streams' scores. It gives no formula for the gate, no tokens, heads, MLP or pooling.
    """

    kind: Literal["cross_attention", "concat", "sum", "scores"] = Field(
        "cross_attention",
        description="cross_attention (the paper): the first branch and each other one attend to each other; "
        "a pair is a stream. concat, sum: a pair's pooled features side by side, or added after a "
        "projection to the first one's width; then a linear head. scores: no pairs, each branch is a stream.",
    )
    gate: Literal["tanh", "sigmoid", "none"] = Field(
        "tanh",
        description="What the attention's update is multiplied by; the paper has a gate but no formula. "
        "tanh: of one learned number (Flamingo). sigmoid: of a linear layer of the querying token, for "
        "each channel. none: plain cross-attention.",
    )
    gate_init: float = Field(
        0.5,
        allow_inf_nan=False,
        description="The gate's number (tanh) or bias (sigmoid) at the start. Flamingo has 0, where the "
        "attention learns only after the gate has opened; 0.5 opens it to 0.46 (sigmoid: about 0.62).",
    )
    mlp_ratio: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Hidden width of a gated MLP after each attention, in widths. 0: none, as the paper "
        "mentions none; Flamingo has 4.",
    )
    tokens: Literal["frame", "patch"] = Field(
        "frame",
        description="What attends; the paper does not say. frame: the mean of each frame's patches. patch: "
        "every patch of every frame. VideoMamba's class token goes in front of either.",
    )
    layers: int = Field(1, ge=1, description="Cross-attention layers each way; the paper has one.")
    heads: int = Field(
        4,
        ge=1,
        description="Heads of the attention; must divide the width of both branches. The paper gives none.",
    )
    direction: Literal["both", "first_to_other", "other_to_first"] = Field(
        "both",
        description="Where information flows. both: the paper. first_to_other: the other branch queries the "
        "first; where RGB is first, this is RGB to depth. other_to_first: the first queries the other.",
    )
    combine: Literal["mean", "learned", "max", "mean_prob"] = Field(
        "mean",
        description="Of the streams' scores. mean: the paper. learned: weighted by a softmax of one learned "
        "number a stream, all equal at first. max: the largest, class by class. mean_prob: mean of "
        "probabilities, as its logarithm.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Before every head, and in the attention. The paper mentions none."
    )


class ModelConfig(_Part):
    """The streams: the first branch is paired with each other branch; alone it is the one stream.

    A branch is any modality with any encoder, in any order; ``fusion.kind=scores`` makes no pairs.
    """

    branches: tuple[BranchField, ...] = Field(
        ("rgb:side4video", "depth:side4video", "depth:videomamba"),
        description="MODALITY:ENCODER, first the one that all others are fused with.",
    )
    tower: TowerConfig = TowerConfig()
    side4video: Side4VideoConfig = Side4VideoConfig()
    videomamba: VideoMambaConfig = VideoMambaConfig()
    fusion: FusionConfig = FusionConfig()

    @pydantic.field_validator("branches")
    @classmethod
    def _has_a_stream(cls, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
        if not branches:
            raise ValueError("no branch, so no stream gives scores; name at least rgb:side4video")
        names = [str(branch) for branch in branches]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice; name each branch once")
        return branches

    @property
    def row(self) -> str:
        """The row's name in the paper's words, for example ``RGB+Depth(VideoMamba)``."""
        return "+".join(branch.title for branch in self.branches)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(dict.fromkeys(branch.modality for branch in self.branches))

    def uses(self, encoder: Encoder) -> bool:
        return any(branch.encoder == encoder for branch in self.branches)


class TrainConfig(_Part):
    """Optimiser, schedule and seed; defaults are Side4Video's SSV2 recipe for ViT-B/16."""

    epochs: int = Field(30, ge=1, description="Passes over the training split.")
    batch_size: int = Field(64, ge=1, description="Clips a step over all workers together.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate of AdamW, after the warm-up.")
    weight_decay: float = Field(
        0.15, ge=0, description="Of weights; norms, biases, gates, states and position tables have none."
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates of both moments.")
    warmup_epochs: float = Field(4, ge=0, description="Linear warm-up; cosine to zero after it.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Of the cross-entropy in training.")
    clip_grad_norm: float | None = Field(1.0, gt=0, description="None: no clipping.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 runs the forward pass under autocast and keeps the frozen tower in bf16; trainable "
        "weights stay fp32.",
    )
    gradient_checkpointing: bool = _no_result(
        False,
        "Keep only the input of every block and compute the block again in the backward pass: far less "
        "memory, the same gradients, about a third more time in the branches.",
    )
    compile: bool = _no_result(
        False,
        "torch.compile the model: faster on a GPU after some minutes of compiling; needs a C++ compiler.",
    )
    seed: int = Field(0, description="Of the weights, the order of the clips and the augmentation.")
    eval_every: int = _no_result(1, "Epochs between validations; the last epoch is always validated.")
    eval_batch_size: int = _no_result(32, "Clips a step of validation on one worker.")

    @pydantic.model_validator(mode="after")
    def _warm_up_fits(self) -> TrainConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves none of {self.epochs} epochs to train; "
                "make it smaller"
            )
        return self


class RunConfig(_Part):
    """One training run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> RunConfig:
        crop = self.data.crop_size
        if self.data.short_side < crop:
            raise ValueError(
                f"data.short_side {self.data.short_side} is smaller than data.crop_size {crop}; "
                f"make it at least {crop}"
            )
        patches = []
        if self.model.uses("videomamba"):
            patches.append(("model.videomamba.patch_size", self.model.videomamba.patch_size))
        if self.model.uses("side4video") and self.model.tower.name == "random":
            patches.append(("model.tower.patch_size", self.model.tower.patch_size))
        for key, patch in patches:
            if crop % patch:
                raise ValueError(f"data.crop_size {crop} is no multiple of {key} {patch}")
        return self

    @property
    def key(self) -> str:
        """16 hex digits: the hash of all that can change this run's result."""
        text = json.dumps(_result_part(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key, JSON-ready; tuples as lists."""
        return dict(_flatten(self.model_dump(mode="json")))

    def explain(self) -> Iterable[tuple[str, Any, str]]:
        """(dotted key, value, meaning) of every value."""
        meanings = dict(_meanings(type(self)))
        return [(key, value, meanings[key]) for key, value in self.flat().items()]

    def replace(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with some dotted keys replaced; raises ``InputError`` for a wrong key or value."""
        tree = self.model_dump(mode="json")
        known = self.flat()
        for key, value in values.items():
            _set(tree, key, value, known)
        return load(tree)


def load(tree: Mapping[str, Any]) -> RunConfig:
    """A ``RunConfig`` from nested plain values; raises ``InputError`` that names the dotted key."""
    try:
        return RunConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(_one_sentence(error)) from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["train.lr=3e-4", "model.branches=[rgb:side4video]"]`` to a mapping; values are YAML."""
    values = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {text}: not KEY=VALUE, for example train.lr=3e-4")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {key}: '{value}' is no YAML value") from None
    return values


def _set(tree: dict[str, Any], key: str, value: Any, known: Mapping[str, Any]) -> None:
    *parents, leaf = key.split(".")
    node: Any = tree
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise InputError(_unknown_key(key, known))
    if isinstance(node[leaf], dict):
        raise InputError(f"{key}: a group of keys, not a value; set one of {key}.{{…}}")
    node[leaf] = value


def _unknown_key(key: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # right leaf, wrong group
        near = [other for other in known if other.split(".")[-1] == key.split(".")[-1]][:1]
    hint = f"did you mean {near[0]}?" if near else "--help shows how to list the keys"
    return f"{key}: no such key; {hint}"


def _one_sentence(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown_key(place, RunConfig().flat())
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message[0].lower() + message[1:]} (got {first['input']!r})"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _meanings(part: type[BaseModel], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Part):
            yield from _meanings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def _result_part(config: RunConfig) -> dict[str, Any]:
    """The nested values that can change the result: no paths, no parts that no branch uses."""
    tree = config.model_dump(mode="json")
    _drop_what_cannot_matter(tree, config)
    model = tree["model"]
    if not config.model.uses("videomamba"):
        del model["videomamba"]
    if not config.model.uses("side4video"):
        del model["side4video"], model["tower"]
    else:
        model["tower"] = _tower_part(config.model.tower)
    model["fusion"] = _fusion_part(config.model)
    return tree


def _drop_what_cannot_matter(tree: dict[str, Any], part: BaseModel) -> None:
    """Delete the fields of a part, and of the parts in it, that are marked as without effect."""
    for name, field in type(part).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("affects_result") is False:
            del tree[name]
        elif isinstance(value := getattr(part, name), _Part):
            _drop_what_cannot_matter(tree[name], value)


def _tower_part(tower: TowerConfig) -> dict[str, Any]:
    """The values that decide the tower; a file is its content, whatever its path."""
    if tower.name == "random":
        return tower.model_dump(mode="json", exclude={"pretrained", "pretrained_identity"})
    used = {"name", "quick_gelu"}
    if tower.pretrained is None:
        used |= {"seed"}
    else:
        used |= {"pretrained"} if tower.pretrained_identity is None else {"pretrained_identity"}
    return tower.model_dump(mode="json", include=used)


def _fusion_part(model: ModelConfig) -> dict[str, Any]:
    """The fusion's values that this model reads; the others cannot change it."""
    fusion, count = model.fusion, len(model.branches)
    used = {"dropout"}
    streams = count if fusion.kind == "scores" else max(1, count - 1)
    if count > 1:
        used |= {"kind"}
        if fusion.kind == "cross_attention":
            used |= {"gate", "mlp_ratio", "tokens", "layers", "heads", "direction"}
            used |= {"gate_init"} if fusion.gate != "none" else set()
    if streams > 1:
        used |= {"combine"}
    return fusion.model_dump(mode="json", include=used)
