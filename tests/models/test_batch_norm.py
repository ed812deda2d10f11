"""Channel-last batch normalisation equals BatchNorm3d, and two processes equal one."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dear_core.models import ChannelLastBatchNorm

D = 6
ROWS = (5, 3)  # of the two ranks


@pytest.mark.parametrize("momentum", [0.1, None])
def test_equals_batch_norm_3d(momentum):
    ours, theirs = ChannelLastBatchNorm(D, momentum=momentum), nn.BatchNorm3d(D, momentum=momentum)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        x = torch.randn(2, 3, 4, 5, D, requires_grad=True)
        weight = torch.randn(2, 3, 4, 5, D)
        got, want = ours(x), theirs(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, want)]
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.movedim(-1, 1)).movedim(1, -1))


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"\[\.\.\., 6\]"):
        ChannelLastBatchNorm(D)(torch.randn(2, D + 1))


def make_case():
    """A layer, all rows (with a mean of ten spreads) and the weights of a scalar loss."""
    generator = torch.Generator().manual_seed(0)
    layer = ChannelLastBatchNorm(D)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.normal_(generator=generator)
    x = torch.randn(sum(ROWS), 4, D, generator=generator) + 10
    return layer, x, torch.randn(sum(ROWS), 4, D, generator=generator)


def step(layer, x, weight):
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * weight).sum().backward()
    grads = {"input": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    return {"y": y.detach(), **grads, "state": layer.state_dict()}


def rank_main(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    layer, x, weight = make_case()
    part = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
    torch.save(step(layer, x[part], weight[part]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_the_whole_batch(tmp_path):
    layer, x, weight = make_case()
    # The whole batch in double precision: a large mean costs float32 itself a digit.
    whole = step(copy.deepcopy(layer).double(), x.double(), weight.double())
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    close = {"atol": 1e-5, "rtol": 1e-5, "check_dtype": False}
    for name in ("y", "input"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], **close)
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], **close)
    for part in parts:
        for key, value in whole["state"].items():
            torch.testing.assert_close(part["state"][key], value, **close)


if __name__ == "__main__":  # one rank of the test above, in a process of its own
    rank_main(int(sys.argv[1]), sys.argv[2])
