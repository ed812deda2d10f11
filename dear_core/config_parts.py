"""The parts of a ``RunConfig``: every field with its type, default, limits and meaning.

``description`` is what ``--keys`` shows. A field made by ``_no_result`` cannot change a run's result and
stays out of its key. This module knows no torch, no Ray, no files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

Modality = Literal["rgb", "depth"]
Encoder = Literal["side4video", "videomamba"]


def _no_result(default: Any, description: str) -> Any:
    """A field that cannot change the result: it stays out of the run's key."""
    return Field(default, description=description, json_schema_extra={"affects_result": False})


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Branch(Part):
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


class DepthStoreConfig(Part):
    """What made the depth that is read; filled in at the start. A store that differs is refused."""

    model: str | None = Field(None, description="The estimator, for example Intel/dpt-hybrid-midas.")
    weights: str | None = Field(None, description="Hash of its weights.")
    height: int | None = Field(None, description="Shorter side of the depth videos, in pixels.")
    normalisation: str | None = Field(None, description="How values became grey levels.")
    codec: str | None = Field(None, description="How the grey levels were encoded.")


class DataConfig(Part):
    """Which clips, and how a clip becomes a tensor."""

    format: Literal["ssv2", "list", "csv", "epic"] = Field(
        "ssv2",
        description="Form of the data set on disk (docs/data.md). ssv2: Something-Something V2 as it comes. "
        "list: lines 'path frames label' (frame folders) or 'path label' (videos), as Side4Video has. csv: "
        "'path,label', as VideoMamba and VideoMAE have. epic: EPIC-KITCHENS-100.",
    )
    root: str = _no_result("data/demo", "Folder that holds the annotations and videos/.")
    videos: str | None = _no_result(None, "Folder of the videos or frames; default by format (docs/data.md).")
    annotations: str | None = _no_result(None, "Folder of the annotation files; default ROOT.")
    task: Literal["verb", "noun", "action"] = Field(
        "action",
        description="epic only: what is recognised; an action is a verb and a noun, both scored.",
    )
    frame_pattern: str | None = _no_result(
        None,
        "Name of a frame's file in a frame folder, with its number, the first being 1; default "
        "img_{:05d}.jpg (list), frame_{:010d}.jpg (epic).",
    )
    identity: str | None = Field(
        None, description="Hash of annotations, file sizes and depth store; filled in at the start."
    )
    depth: Literal["matched", "shuffled", "constant", "time_shuffled"] = Field(
        "matched",
        description="matched: each clip with its own depth. Controls: shuffled, another clip's depth of the "
        "same split; constant, the same value everywhere; time_shuffled, its own in another order of frames.",
    )
    depth_root: str | None = _no_result(None, "Depth store; default ROOT/depth.")
    depth_store: DepthStoreConfig = DepthStoreConfig()
    num_frames: int = Field(8, ge=1, description="Frames a clip (paper section 3: 8).")
    sampling: Literal["segments", "stride", "dense"] = Field(
        "segments",
        description="segments: one frame of each of num_frames equal parts (TSN). stride: frames at a fixed "
        "distance. dense: evenly from a window of dense_window frames.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Frames from one to the next, for stride; none: the most that fits the clip.",
    )
    dense_window: int = Field(
        128, ge=1, description="Frames of the window, for dense (Side4Video: sample_range 128)."
    )
    test_clips: int = Field(1, ge=1, description="Clips of a video whose probabilities validation averages.")
    test_crops: Literal[1, 3] = Field(
        1,
        description="1: the centre. 3: squares as high as the video at the left, centre and right; their "
        "probabilities are averaged.",
    )
    short_side: int = Field(
        256,
        ge=16,
        description="Validation crops crop_size of a video whose shorter side is this many pixels; also what "
        "the cache holds.",
    )
    crop_size: int = Field(224, ge=16, description="Side of the square network input, in pixels.")
    train_scale: tuple[float, float] = Field(
        (0.5, 1.0), description="Random resized crop: share of the image's area, lowest and highest."
    )
    flip: bool = Field(
        True,
        description="Mirror half the training clips; left and right are exchanged in labels, so clips "
        "whose classes have no texts are not mirrored.",
    )
    rand_augment: str | None = Field(
        None,
        description="RandAugment in timm's words, for example rand-m7-n4-mstd0.5-inc1; none: off. Geometry "
        "moves RGB and depth alike, colour changes RGB alone.",
    )
    colour_jitter: float = Field(
        0.0, ge=0, le=1, description="Brightness, contrast and saturation jitter of RGB in training."
    )
    repeats: int = Field(
        1,
        ge=1,
        description="Augmented samples of every clip in a batch, decoded once (repeated augmentation)",
    )
    mixup: float = Field(0.0, ge=0, description="Alpha of mixup on batches; 0: off.")
    cutmix: float = Field(
        0.0, ge=0, description="Alpha of CutMix on batches; 0: off. With mixup, each batch takes one of them."
    )
    max_bad_fraction: float = _no_result(
        0.001, "A run fails when more than this share of a split's clips cannot be read; fewer are left out."
    )
    cache_dir: str | None = _no_result(
        None, "Folder for decoded frames, decoded once for all epochs and runs; none: decode always."
    )
    workers: int = _no_result(0, "Loader processes a training worker; 0 loads in the worker itself.")

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        if self.train_scale[0] > self.train_scale[1] or self.train_scale[0] <= 0:
            raise ValueError(
                f"train_scale {list(self.train_scale)} should be the lowest and the highest share of the "
                "area, above 0"
            )
        if self.depth == "time_shuffled" and self.num_frames < 2:
            raise ValueError("depth time_shuffled needs num_frames of 2 or more: one frame has no order")
        return self


class TowerConfig(Part):
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


class Side4VideoConfig(Part):
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


class VideoMambaConfig(Part):
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


class FusionConfig(Part):
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


class ModelConfig(Part):
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


class TrainConfig(Part):
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
