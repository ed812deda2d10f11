"""Named starting points: functions that return a ``RunConfig``. A variant is a base plus a few changes."""

from __future__ import annotations

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

DEMO_ROOT = "data/demo"


def ssv2_vitb16() -> RunConfig:
    """The paper's setting: 8×224×224, ViT-B/16, AdamW (section 3), with Side4Video's SSV2 recipe.

    Recipe: side width 320, lr 1e-3, weight decay 0.15, 30 epochs of which 4 warm up, label smoothing
    0.1 (Side4Video, ``configs/sthv2/sthv2_train_rgb_vitb-16-side4video.yaml``). The second depth branch
    is VideoMamba-S, the size in the paper's Table 1.
    """
    return RunConfig(
        data=DataConfig(root="data/ssv2"),
        train=TrainConfig(precision="bf16"),
    )


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


PRESETS = {"demo": demo, "ssv2_vitb16": ssv2_vitb16}
