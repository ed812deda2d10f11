"""DEAR: branches over RGB and depth, fused in pairs, their scores averaged.

Why: one module is every row of the paper's table 1, and the baselines beside them. Which row it is follows
from the branches it is given: RGB alone, RGB with one depth branch, RGB with two; any other choice and
order of (modality, encoder) is as legal.

What it does not do: it does not build branches or towers, decode or normalise clips, or know a loss.

Legend: B clips, C colours (depth may have 1), T frames, H W pixels, N patches a frame, D a branch's
width, L tokens that fusion sees, K classes, S streams.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dear_core.models.clip import FrozenTower
from dear_core.models.fusion import Direction, Gate, PairConcat, PairFusion, PairSum
from dear_core.models.side4video import Side4Video
from dear_core.models.videomamba import VideoMamba

Kind = Literal["cross_attention", "concat", "sum", "scores"]
Tokens = Literal["frame", "patch"]
Combine = Literal["mean", "learned", "max", "mean_prob"]
Output = tuple[Tensor | None, Tensor]  # of a branch: its class token [B, D], if any, and patches_BTND


class PooledHead(nn.Module):
    """The scores of a branch alone: one linear layer, `fc`, as in both official models.

    It starts with torch's default (see `fusion`); feature_BD is read as it comes, not normalised again.
    """

    def __init__(self, *, dim: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, feature_BD: Tensor) -> Tensor:
        """feature_BD -> logits_BK."""
        return self.fc(self.dropout(feature_BD))


class DEAR(nn.Module):
    """Depth-Enhanced Action Recognition (DEAR, section 2 and figure 1): clips -> logits_BK.

    Args:
        tower: the frozen image tower; needed by Side4Video branches, else None.
        branches: ordered; a key is "modality:anything", a value a Side4Video or a VideoMamba. The
            first is the anchor: with every other branch it forms a pair, and a pair is a stream of
            scores named "anchor+other". A branch alone is one stream, named by its key.
        num_classes: K.
        kind: what a pair is. "cross_attention": `PairFusion` over tokens (the paper, section 2). "concat",
            "sum": `PairConcat`, `PairSum` over the features that branches alone would be scored by.
            "scores": no pairs; every branch is a stream with a head of its own, named by its key.
        heads, layers, gate, gate_init, mlp_ratio, direction: of cross-attention, see `PairFusion`; the
            anchor is its first side.
        tokens: what cross-attention sees: "frame" (mean over a frame's patches) or "patch" (all of
            them); VideoMamba's class token is put in front in either case. The paper does not say.
        combine: of the streams' logits, "mean" (the paper: "a mean operation ... to combine their
            scores"), "learned" (softmax weights, one number a stream, which starts as the mean), "max"
            (element-wise), or "mean_prob", the log of the mean of their probabilities. One stream is
            handed on as it is.
        dropout: before every head, and in the attention.

    Raises ValueError for no branches, an unknown kind of branch, option or key, a Side4Video branch
    without a tower or made for another, and heads that do not divide the widths.
    """

    def __init__(
        self,
        *,
        tower: FrozenTower | None,
        branches: Mapping[str, nn.Module],
        num_classes: int,
        kind: Kind = "cross_attention",
        heads: int = 4,
        layers: int = 1,
        gate: Gate = "tanh",
        gate_init: float = 0.5,
        mlp_ratio: float = 0.0,
        tokens: Tokens = "frame",
        direction: Direction = "both",
        combine: Combine = "mean",
        dropout: float = 0.0,
    ):
        super().__init__()
        _check_branches(tower, branches)
        for name, value, known in (
            ("kind", kind, get_args(Kind)),
            ("tokens", tokens, get_args(Tokens)),
            ("combine", combine, get_args(Combine)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}")
        self.tower, self.kind, self.tokens, self.combine = tower, kind, tokens, combine
        self.branches = nn.ModuleDict(branches)
        self.streams = nn.ModuleDict()
        pair: Callable[..., nn.Module] = {"concat": PairConcat, "sum": PairSum}.get(kind) or partial(
            PairFusion,
            heads=heads,
            layers=layers,
            gate=gate,
            gate_init=gate_init,
            mlp_ratio=mlp_ratio,
            direction=direction,
        )
        for name, keys in _streams(branches, kind).items():
            dims = tuple(branches[key].dim for key in keys)
            try:
                self.streams[name] = (
                    pair(dims=dims, num_classes=num_classes, dropout=dropout)
                    if len(dims) == 2
                    else PooledHead(dim=dims[0], num_classes=num_classes, dropout=dropout)
                )
            except ValueError as error:
                raise ValueError(f"fusion.{error} (stream {name})") from None
        if combine == "learned" and len(self.streams) > 1:
            self.stream_weights = nn.Parameter(torch.zeros(len(self.streams)))

    def forward(self, clip: Mapping[str, Tensor]) -> Tensor:
        """{"rgb": [B,C,T,H,W], "depth": ...} -> logits_BK. Raises ValueError as `stream_logits`."""
        return self.combined(self.stream_logits(clip))

    def stream_logits(self, clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores of each stream, by name: {stream: logits_BK}.

        Raises ValueError if the clip lacks a modality that a branch reads or has one that none does.
        """
        return self.fuse(self._run_branches(clip))

    def fuse(self, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        """What each branch gave, by key -> the scores of each stream {stream: logits_BK}."""
        attends = self.kind == "cross_attention" and len(outputs) > 1
        seen = {key: self._tokens(*out) if attends else _pooled(*out) for key, out in outputs.items()}
        names = _streams(outputs, self.kind)
        return {name: self.streams[name](*(seen[key] for key in keys)) for name, keys in names.items()}

    def combined(self, streams: Mapping[str, Tensor]) -> Tensor:
        """{stream: logits_BK} -> logits_BK, as `combine` says."""
        logits_SBK = torch.stack(list(streams.values()))
        if len(streams) == 1:
            return logits_SBK[0]
        if self.combine == "learned":
            return (self.stream_weights.softmax(0)[:, None, None] * logits_SBK).sum(0)
        if self.combine == "max":
            return logits_SBK.amax(0)
        if self.combine == "mean_prob":
            return logits_SBK.log_softmax(-1).logsumexp(0) - math.log(len(streams))
        return logits_SBK.mean(0)

    def _run_branches(self, clip: Mapping[str, Tensor]) -> dict[str, Output]:
        """Every branch's class token [B, D] (None if it has none) and patches_BTND."""
        wanted = list(dict.fromkeys(map(modality_of, self.branches)))
        if set(wanted) != set(clip):
            raise ValueError(f"the branches read the modalities {wanted}, the clip has {list(clip)}")
        taps = self._taps(clip)
        outputs = {}
        for key, branch in self.branches.items():
            video_BCTHW = _with_channels(clip[modality_of(key)], branch.in_channels)
            if isinstance(branch, Side4Video):
                outputs[key] = (None, branch(video_BCTHW, taps[modality_of(key)]))
            else:
                outputs[key] = branch(video_BCTHW)
        return outputs

    def _taps(self, clip: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """The tower's tokens for each modality a Side4Video branch reads, from one pass of it."""
        readers = (key for key, branch in self.branches.items() if isinstance(branch, Side4Video))
        modalities = list(dict.fromkeys(map(modality_of, readers)))
        if not modalities:
            return {}
        frames = [_with_channels(clip[modality], 3).transpose(1, 2).flatten(0, 1) for modality in modalities]
        counts = [len(part) for part in frames]
        split = [tap.split(counts) for tap in self.tower(torch.cat(frames))]
        return {modality: [parts[index] for parts in split] for index, modality in enumerate(modalities)}

    def _tokens(self, cls_BD: Tensor | None, patches_BTND: Tensor) -> Tensor:
        """What cross-attention sees of a branch -> tokens_BLD."""
        tokens = patches_BTND.mean(2) if self.tokens == "frame" else patches_BTND.flatten(1, 2)
        return tokens if cls_BD is None else torch.cat([cls_BD[:, None], tokens], dim=1)

    def trainable_state(self) -> dict[str, Tensor]:
        """The state without the frozen tower, as copies on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self._own_state().items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state` gave.

        Raises ValueError, and loads nothing, if a key is missing, unknown, or of another shape.
        """
        own = self._own_state()
        wrong = {
            "missing": [key for key in own if key not in state],
            "unexpected": [key for key in state if key not in own],
            "of another shape": [
                f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
                for key in own
                if key in state and state[key].shape != own[key].shape
            ],
        }
        told = [f"{kind}: {', '.join(keys[:3])} ({len(keys)})" for kind, keys in wrong.items() if keys]
        if told:
            raise ValueError(f"the state does not fit this model, nothing loaded; {'; '.join(told)}")
        self.load_state_dict(dict(state), strict=False)

    def _own_state(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith("tower.")}


def modality_of(branch_key: str) -> str:
    """ "depth:videomamba" -> "depth"."""
    return branch_key.split(":", 1)[0]


def _streams(keys: Iterable[str], kind: Kind) -> dict[str, tuple[str, ...]]:
    """The streams by name, in order, each with the keys of the branches that it reads."""
    anchor, *others = keys
    if kind == "scores" or not others:
        return {key: (key,) for key in (anchor, *others)}
    return {f"{anchor}+{other}": (anchor, other) for other in others}


def _pooled(cls_BD: Tensor | None, patches_BTND: Tensor) -> Tensor:
    """A branch's feature [B, D]: its class token, or the mean over frames and patches."""
    return patches_BTND.mean((1, 2)) if cls_BD is None else cls_BD


def _with_channels(video_BCTHW: Tensor, channels: int) -> Tensor:
    """Repeat a single channel (a depth map) where more are read."""
    if video_BCTHW.shape[1] == 1 and channels > 1:
        return video_BCTHW.expand(-1, channels, -1, -1, -1)
    return video_BCTHW


def _check_branches(tower: FrozenTower | None, branches: Mapping[str, nn.Module]) -> None:
    if not branches:
        raise ValueError("branches is empty; give at least one, such as 'rgb:side4video'")
    for key, branch in branches.items():
        if ":" not in key or not modality_of(key) or "." in key:
            raise ValueError(f"branch key {key!r} must read 'modality:name', without dots")
        if not isinstance(branch, Side4Video | VideoMamba):
            raise ValueError(
                f"branch {key!r} is a {type(branch).__name__}; it must be Side4Video or VideoMamba"
            )
        if not isinstance(branch, Side4Video):
            continue
        if tower is None:
            raise ValueError(f"branch {key!r} is a Side4Video and needs a tower, got None")
        for name, own in (
            ("width", branch.tower_width),
            ("layers", branch.tower_layers),
            ("num_patches", branch.num_patches),
        ):
            if getattr(tower, name) != own:
                raise ValueError(
                    f"branch {key!r} was made for a tower with {name}={own}; "
                    f"{tower.name!r} has {name}={getattr(tower, name)}"
                )
