"""Where data and results lie: paths in a config that mean the same on every node and in every folder."""

from __future__ import annotations

import os
from pathlib import Path

from dear_core.config import DataConfig, RunConfig

KEYS = (
    "data.root",
    "data.videos",
    "data.annotations",
    "data.depth_root",
    "data.cache_dir",
    "model.side4video.pretrained",
    "model.videomamba.pretrained",
)
"""Keys of paths; relative ones lie below ``home()``."""


def home() -> Path:
    """Where data and results lie if nothing else is said: DEAR_HOME, else the working folder."""
    return Path(os.environ.get("DEAR_HOME") or ".").absolute()


def absolute(config: RunConfig) -> RunConfig:
    """The config with every path absolute."""
    places = {key: path for key, path in config.flat().items() if key in KEYS and path is not None}
    weights = config.model.tower.pretrained  # a tag or a file
    if weights is not None and (home() / weights).is_file():
        places["model.tower.pretrained"] = weights
    return config.replace({key: str(home() / path) for key, path in places.items()})


def absolute_data(data: DataConfig) -> DataConfig:
    """The data part of a config with every path absolute."""
    return absolute(RunConfig(data=data)).data
