"""Named starting points: functions that return a ``RunConfig``. A variant is a base plus a few changes.

``PRESETS`` has the bases, ``CHANGES`` the named groups of dotted keys that go on top of one, and
``by_name`` reads both: ``ssv2_vitb16``, or ``ssv2_vitb16+videomamba_middle``.

Where the numbers come from. Paths below Side4Video are in HJYao00/Side4Video (5d72352), below VideoMamba
in OpenGVLab/VideoMamba (f3427e4). Side4Video's ViT-E/14 (side width 576) is left out: it is an EVA tower
and no plain ViT. VideoMamba's own recipe (lr 4e-4, 5 warm-up epochs, weight decay 0.05 or 0.1) is not
used: a run has one optimiser, and the paper names Side4Video as its framework.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from dear_core.config import (
    DataConfig,
    FusionConfig,
    ModelConfig,
    RunConfig,
    Side4VideoConfig,
    TowerConfig,
    TrainConfig,
    VideoMambaConfig,
)
from dear_core.errors import InputError

DEMO_ROOT = "data/demo"
SSV2_CLASSES = 174  # Side4Video, Recognition/configs/sthv2/*.yaml: num_classes

# The lower rows of the paper's Table 1, as branches and in its order; the first is its S4V*.
PAPER_ROWS: tuple[tuple[str, ...], ...] = (
    ("rgb:side4video",),
    ("rgb:side4video", "depth:videomamba"),
    ("rgb:side4video", "depth:side4video"),
    ("rgb:side4video", "depth:side4video", "depth:videomamba"),
)

# Tower and side width: Side4Video, Recognition/configs/sthv2/sthv2_train_rgb_vit{b-32,b-16,l-14}-
# side4video.yaml: arch, side_dim (the same in configs/sthv1 and configs/k400).
SIDE4VIDEO: Mapping[str, Mapping[str, Any]] = {
    "vitb32": {"model.tower.name": "ViT-B-32", "model.side4video.dim": 320},
    "vitb16": {"model.tower.name": "ViT-B-16", "model.side4video.dim": 320},
    "vitl14": {"model.tower.name": "ViT-L-14", "model.side4video.dim": 512},
}


def _videomamba(embed_dim: int, depth: int, drop_path: float) -> dict[str, Any]:
    sizes = {"embed_dim": embed_dim, "depth": depth, "patch_size": 16, "drop_path": drop_path}
    return {f"model.videomamba.{name}": value for name, value in sizes.items()}


# Sizes: VideoMamba, videomamba/video_sm/models/videomamba.py: videomamba_tiny, _small, _middle.
# Drop path: videomamba/video_sm/exp/ssv2/videomamba_{tiny,small,middle}/run_f8x224.sh: --drop_path.
VIDEOMAMBA: Mapping[str, Mapping[str, Any]] = {
    "tiny": _videomamba(192, 24, 0.1),
    "small": _videomamba(384, 24, 0.35),
    "middle": _videomamba(576, 32, 0.8),
}


def ssv2_vitb16() -> RunConfig:
    """The paper's setting: 8×224×224, ViT-B/16, AdamW (section 3), with Side4Video's SSV2 recipe.

    Recipe, from Side4Video's ``Recognition/configs/sthv2/sthv2_train_rgb_vitb-16-side4video.yaml``: side
    width 320, lr 1e-3, weight decay 0.15, betas 0.9 and 0.999, 30 epochs of which 4 warm up, cosine, label
    smoothing 0.1, 16 clips a GPU; ``Recognition/scripts/run_train_vision.sh`` has 8 GPUs, so 128 clips a
    step. The second depth branch is VideoMamba-S, the size in the paper's Table 1.

    Augmentation from the same file and ``Recognition/utils/Augmentation.py``: rand_aug
    (rand-m7-n4-mstd0.5-inc1), num_sample 2, resized crop of 0.08 to 1 of the area, flips that exchange
    left/right labels. Frames: the paper's "static stride" (section 3), read as one stride a video, the
    largest that fits; Side4Video draws one frame of each of 8 segments (``data.sampling=segments``).
    """
    base = RunConfig(
        data=DataConfig(
            root="data/ssv2",
            num_frames=8,
            sampling="stride",
            crop_size=224,
            train_scale=(0.08, 1.0),
            rand_augment="rand-m7-n4-mstd0.5-inc1",
            repeats=2,
            workers=8,
        ),
        train=TrainConfig(
            epochs=30,
            batch_size=128,
            lr=1e-3,
            weight_decay=0.15,
            betas=(0.9, 0.999),
            warmup_epochs=4,
            label_smoothing=0.1,
            precision="bf16",
        ),
    )
    return base.replace({**SIDE4VIDEO["vitb16"], **VIDEOMAMBA["small"]})


def ssv2_vitb32() -> RunConfig:
    """The paper's setting beside a ViT-B/32, which has a quarter of the patches.

    ``sthv2_train_rgb_vitb-32-side4video.yaml`` differs from the one for ViT-B/16 in the tower alone.
    """
    return ssv2_vitb16().replace(SIDE4VIDEO["vitb32"])


def ssv2_vitl14() -> RunConfig:
    """The paper's setting beside a ViT-L/14.

    ``sthv2_train_rgb_vitl-14-side4video.yaml``: side width 512 and lr 1e-4; the rest as for ViT-B/16.
    """
    return ssv2_vitb16().replace({**SIDE4VIDEO["vitl14"], "train.lr": 1e-4})


def demo() -> RunConfig:
    """Every part of the real model at a size that two CPU cores train in about a minute."""
    return RunConfig(
        data=DataConfig(
            root=DEMO_ROOT,
            cache_dir=f"{DEMO_ROOT}/frames",
            short_side=72,
            crop_size=64,
            train_scale=(0.8, 1.0),
            colour_jitter=0.2,
        ),
        model=ModelConfig(
            tower=TowerConfig(name="random", pretrained=None, width=96, layers=3, heads=2, patch_size=16),
            side4video=Side4VideoConfig(dim=64),
            videomamba=VideoMambaConfig(embed_dim=64, depth=3, drop_path=0.0),
            fusion=FusionConfig(heads=2),
        ),
        train=TrainConfig(
            epochs=6,
            batch_size=16,
            lr=3e-3,
            weight_decay=0.05,
            warmup_epochs=0.5,
            label_smoothing=0.0,
        ),
    )


PRESETS = {
    "demo": demo,
    "ssv2_vitb32": ssv2_vitb32,
    "ssv2_vitb16": ssv2_vitb16,
    "ssv2_vitl14": ssv2_vitl14,
}
CHANGES: dict[str, Mapping[str, Any]] = {
    **{f"side4video_{tower}": keys for tower, keys in SIDE4VIDEO.items()},
    **{f"videomamba_{size}": keys for size, keys in VIDEOMAMBA.items()},
}


def by_name(name: str) -> RunConfig:
    """A preset, and after each ``+`` a group of changes to it; raises ``InputError`` for another name."""
    first, *others = name.split("+")
    config = PRESETS[_known(first, PRESETS, "preset")]()
    for other in others:
        config = config.replace(CHANGES[_known(other, CHANGES, "group of changes")])
    return config


def data_keys(arguments: Sequence[str]) -> DataConfig:
    """The data part of the preset that ``--preset`` names among command-line arguments, else the defaults.

    Read before the command line is parsed, whose other options then change it.
    """
    for position, word in enumerate(arguments):
        if word == "--preset" and position + 1 < len(arguments):
            return by_name(arguments[position + 1]).data
        if word.startswith("--preset="):
            return by_name(word.removeprefix("--preset=")).data
    return DataConfig()


def _known(name: str, names: Mapping[str, Any], kind: str) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"--preset {name}: no such {kind}; {hint}known are {', '.join(names)}")
    return name
