"""Which branch earns its keep? The paper's Table 1: RGB alone, with one depth branch, with both."""

from dear_core.presets import demo as base

METRIC, MODE = "validation/top1", "max"
BASELINE = "RGB"

ROWS = {
    "RGB": ["rgb:side4video"],
    "RGB+Depth(VideoMamba)": ["rgb:side4video", "depth:videomamba"],
    "RGB+Depth": ["rgb:side4video", "depth:side4video"],
    "RGB+Depth+Depth(VideoMamba)": ["rgb:side4video", "depth:side4video", "depth:videomamba"],
}


def space(trial):
    row = trial.suggest_categorical("row", list(ROWS))
    return {"model.branches": ROWS[row]}


__all__ = ["BASELINE", "METRIC", "MODE", "base", "space"]
