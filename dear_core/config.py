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
from typing import Any

import pydantic
import yaml
from pydantic import BaseModel

from dear_core.config_parts import (
    Branch,
    DataConfig,
    DepthStoreConfig,
    FusionConfig,
    ModelConfig,
    Part,
    Side4VideoConfig,
    TowerConfig,
    TrainConfig,
    VideoMambaConfig,
)
from dear_core.errors import InputError

__all__ = [
    "Branch",
    "DataConfig",
    "DepthStoreConfig",
    "FusionConfig",
    "ModelConfig",
    "RunConfig",
    "Side4VideoConfig",
    "TowerConfig",
    "TrainConfig",
    "VideoMambaConfig",
    "load",
    "parse_assignments",
]


class RunConfig(Part):
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
        if self.data.depth == "constant" and "rgb" not in self.model.modalities:
            raise ValueError(
                "data.depth constant leaves nothing to see: no branch of model.branches reads rgb"
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
            if value.startswith("{"):  # no mapping is a value of any key; a pattern such as {:06d}.jpg is
                values[key.strip()] = value
                continue
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
        if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
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
    for name in _unread_data(config):
        tree["data"].pop(name, None)
    return tree


def _drop_what_cannot_matter(tree: dict[str, Any], part: BaseModel) -> None:
    """Delete the fields of a part, and of the parts in it, that are marked as without effect."""
    for name, field in type(part).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("affects_result") is False:
            del tree[name]
        elif isinstance(value := getattr(part, name), Part):
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


def _unread_data(config: RunConfig) -> set[str]:
    """The names below ``data`` that this run does not read."""
    data = config.data
    unread = set() if data.format == "epic" else {"task"}
    unread |= {"stride"} if data.sampling != "stride" else set()
    unread |= {"dense_window"} if data.sampling != "dense" else set()
    if "depth" not in config.model.modalities:
        return unread | {"depth_store", "depth"}
    return unread | {"depth_store"} if data.depth == "constant" else unread


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
