"""Tables are resampled as the code they come from does it."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import resize_pos_embed
from torch import nn

from dear_core.models.positions import resize_grid, resize_time


@pytest.mark.parametrize(("old", "new"), [(2, 3), (7, 4), (3, 3)])
def test_a_towers_grid_as_open_clip_does(old, new):
    table = torch.randn(1 + old * old, 8)
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.grid_size = (new, new)
    state = {"visual.positional_embedding": table}
    resize_pos_embed(state, model)
    got = resize_grid(table, 1 + new * new, class_tokens=1, antialias=True)
    torch.testing.assert_close(got, state["visual.positional_embedding"])


def test_videomambas_grid_and_time_as_its_fine_tuning_does():
    """run_class_finetuning.py: bicubic without antialias beside the class token; linear over time."""
    table = torch.randn(1, 1 + 16, 6)
    grid = table[:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False)
    want = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    torch.testing.assert_close(resize_grid(table, 10, class_tokens=1, antialias=False), want)
    times = torch.randn(1, 16, 6)
    want = F.interpolate(times.permute(0, 2, 1), size=(8,), mode="linear", align_corners=False)
    torch.testing.assert_close(resize_time(times, 8), want.permute(0, 2, 1))


def test_half_precision_is_resampled_in_float32():
    table = torch.randn(17, 8).half()
    got = resize_grid(table, 10, class_tokens=1, antialias=True)
    assert got.dtype == torch.float32
    assert torch.equal(got, resize_grid(table.float(), 10, class_tokens=1, antialias=True))
    assert torch.equal(got[0], table[0].float())


def test_what_has_no_grid_stays_as_it_is():
    for table, length in ((torch.randn(8, 4), 10), (torch.randn(10, 4), 8), (torch.randn(4), 10)):
        assert resize_grid(table, length, class_tokens=1, antialias=True) is table
    flat = torch.randn(3, 4)
    assert resize_time(flat, 2) is flat
