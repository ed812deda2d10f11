"""The weights files that a run starts from: which they are, what was loaded, and that they belong together.

Why: a path says nothing about a result, so the run's key holds the hash of each file; moving a file changes
nothing, changing a byte makes another run. What a file gave is logged once and kept with the part that it
went to.

What it does not do: it knows no checkpoint's form (`models.weights` does), and the files' classifiers are
never used, because the classes differ.
"""

from __future__ import annotations

import dataclasses
import logging

from torch import nn

from dear_core import distributed
from dear_core.config import RunConfig
from dear_core.errors import InputError
from dear_core.models import clip_towers, weights
from dear_core.models.clip import FrozenTower
from dear_core.models.load_report import LoadReport
from dear_core.models.side4video import Side4Video
from dear_core.models.videomamba import VideoMamba
from dear_core.models.weight_files import WeightsError, fingerprint, read_state

log = logging.getLogger(__name__)


def identities(config: RunConfig) -> dict[str, str]:
    """``pretrained_identity`` of each part that starts from a file, by its dotted key.

    A part without a file keeps what its config says: a checkpoint's config may know weights by their hash
    whose file is no longer needed, because the checkpoint has their successors.

    Raises:
        InputError: a file cannot be read, or is not the one that the config was made for.
    """
    values, files, tower = {}, _files(config), config.model.tower
    if config.model.uses("side4video") and "tower" not in files and tower.pretrained_identity is not None:
        raise InputError(
            f"model.tower.pretrained_identity: the config was made for weights {tower.pretrained_identity}, "
            f"but model.tower gives no file ({tower.name}, {tower.pretrained}); give it, or leave "
            "model.tower.pretrained_identity out"
        )
    for name, path in files.items():
        key, given = f"model.{name}", getattr(config.model, name).pretrained_identity
        try:
            found = fingerprint(path)
        except WeightsError as error:
            raise refused(f"{key}.pretrained", path, error) from None
        if given not in (None, found):
            raise InputError(
                f"{key}.pretrained_identity: the config was made for weights {given}, but {path} is {found}; "
                f"give the original file, or leave {key}.pretrained_identity out"
            )
        values[f"{key}.pretrained_identity"] = found
    return values


def check_at_hand(config: RunConfig) -> None:
    """Raise ``InputError`` if training should start from weights that the config has no file for."""
    parts = config.model
    for name in ("side4video", "videomamba"):
        part = getattr(parts, name)
        if parts.uses(name) and part.pretrained is None and part.pretrained_identity is not None:
            raise InputError(
                f"model.{name}.pretrained: the config was made for weights {part.pretrained_identity}; give "
                f"their file, or leave model.{name}.pretrained_identity out"
            )


def start_side4video(side: Side4Video, path: str | None, tower: FrozenTower) -> None:
    """Load a Side4Video file's side network, if there is a file.

    The file brings the tower that its side network was trained beside. It is compared with the tower in use
    and never loaded over it. Another tower gives features that the side network has not seen, so it is
    refused; to use the file's tower, name the file in ``model.tower.pretrained`` as well.

    Raises:
        InputError: the file cannot be read, does not fit, or was trained beside another tower.
    """
    if path is None:
        return
    key = "model.side4video.pretrained"
    try:
        state = read_state(path)
        loaded, head = weights.load_side4video(side, state)
    except WeightsError as error:
        raise refused(key, path, error) from None
    held, differ = weights.tower_difference(tower, state)
    if differ:
        raise InputError(
            f"{key}: {path}: was trained beside another tower than {tower.name}: {len(differ)} of {held} "
            f"tensors differ, the first is {differ[0]}; name this file in model.tower.pretrained too, or the "
            "weights that it was trained with"
        )
    note = f"its frozen tower is the one in use ({held} tensors compared)"
    report(key, path, side, loaded, *_left_out(head), note if held else "it has no frozen tower to compare")


def start_videomamba(mamba: VideoMamba, path: str | None) -> None:
    """Load a VideoMamba file, if there is one; raises ``InputError`` as above."""
    if path is None:
        return
    key = "model.videomamba.pretrained"
    try:
        loaded, head = weights.load_videomamba(mamba, read_state(path))
    except WeightsError as error:
        raise refused(key, path, error) from None
    report(key, path, mamba, loaded, *_left_out(head))


def report(key: str, path: str, part: nn.Module, loaded: LoadReport, *notes: str) -> None:
    """Log what was loaded, on one worker, and keep it with the part for :func:`reports`."""
    part.load_report = dataclasses.replace(loaded, notes=(*loaded.notes, *notes))
    if distributed.rank() == 0:
        log.info("%s: %s: %s", key, path, part.load_report.summary())


def reports(network: nn.Module) -> dict[str, LoadReport]:
    """What was loaded into each part of a network that started from weights, by the part's name in it."""
    found = {name: getattr(part, "load_report", None) for name, part in network.named_modules()}
    return {name: one for name, one in found.items() if one is not None}


def refused(key: str, path: str, error: WeightsError) -> InputError:
    """The error as the user reads it: the dotted key, the file, what is wrong."""
    sentence = str(error)
    return InputError(f"{key}: {sentence}" if path in sentence else f"{key}: {path}: {sentence}")


def _left_out(head: object) -> list[str]:
    return ["its classifier was left out"] if head else []


def _files(config: RunConfig) -> dict[str, str]:
    """The files that the parts in use start from, by the part's name below ``model``."""
    parts, files = config.model, {}
    if parts.uses("side4video"):
        files["side4video"] = parts.side4video.pretrained
        tower = parts.tower
        if tower.name != "random" and clip_towers.tag_config(tower.name, tower.pretrained) is None:
            files["tower"] = tower.pretrained
    if parts.uses("videomamba"):
        files["videomamba"] = parts.videomamba.pretrained
    return {name: path for name, path in files.items() if path is not None}
