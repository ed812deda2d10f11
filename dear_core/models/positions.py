"""Position tables for another grid or another number of frames.

Why: a checkpoint made at another size is of use once its tables are resampled, in the way of the code that
it comes from: CLIP's grid as open_clip does (model.py, `resize_pos_embed`: bicubic with antialias),
VideoMamba's as its fine-tuning does (video_sm/run_class_finetuning.py: bicubic without antialias, over time
linear). Side4Video has no such code; its table goes the way of its tower's.

What it does not do: it handles square grids only, and decides nothing (`weights` does).

Legend: L entries (class tokens first, then the grid row by row), T time slots, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_grid(table: Tensor, length: int, *, class_tokens: int, antialias: bool) -> Tensor:
    """[..., L, D] -> [..., length, D], in float32 or wider; the class tokens stay as they are.

    A table is returned as it is if it has one axis only, or its grid or the wanted one is not square.
    """
    if table.ndim < 2:
        return table
    *lead, _, D = table.shape
    old, new = (_side(count - class_tokens) for count in (table.shape[-2], length))
    if old is None or new is None:
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32)).reshape(-1, table.shape[-2], D)
    tokens, grid = wide[:, :class_tokens], wide[:, class_tokens:]
    grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([tokens, grid.flatten(2).transpose(1, 2)], dim=1).reshape(*lead, length, D)


def resize_time(table_1TD: Tensor, length: int) -> Tensor:
    """[1, T, D] -> [1, length, D], linear between slots, in float32 or wider; other tables as they are."""
    if table_1TD.ndim != 3:
        return table_1TD
    wide = table_1TD.to(torch.promote_types(table_1TD.dtype, torch.float32))
    return F.interpolate(wide.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(
        1, 2
    )


def _side(count: int) -> int | None:
    """Of a square grid of ``count`` entries, if there is one."""
    side = math.isqrt(max(count, 0))
    return side if side > 0 and side * side == count else None
