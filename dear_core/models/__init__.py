"""The model: a frozen tower, branches beside it, their fusion.

Why here: what others need is imported from this package; the modules below stay free to move.
What it does not do: importing it builds nothing and picks no device.
"""

from dear_core.models.batch_norm import ChannelLastBatchNorm
from dear_core.models.clip import FrozenTower, tower_hash
from dear_core.models.clip_towers import build_tower, random_tower
from dear_core.models.dear import DEAR
from dear_core.models.flops import Flops, count, parameters
from dear_core.models.fusion import GatedCrossAttention, PairFusion
from dear_core.models.selective_scan import Direction, selective_scan, selective_scan_reference
from dear_core.models.side4video import Side4Video
from dear_core.models.videomamba import VideoMamba
from dear_core.models.weights import (
    LoadReport,
    load_clip_visual,
    load_side4video,
    load_videomamba,
)

__all__ = [
    "DEAR",
    "ChannelLastBatchNorm",
    "Direction",
    "Flops",
    "FrozenTower",
    "GatedCrossAttention",
    "LoadReport",
    "PairFusion",
    "Side4Video",
    "VideoMamba",
    "build_tower",
    "count",
    "load_clip_visual",
    "load_side4video",
    "load_videomamba",
    "parameters",
    "random_tower",
    "selective_scan",
    "selective_scan_reference",
    "tower_hash",
]
