"""Rank, world and sums over workers; all of it does nothing when a run has one worker.

The process group itself is made by whoever starts the workers (Ray Train, torchrun).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if _active() else 0


def world() -> int:
    return dist.get_world_size() if _active() else 1


def sum_(tensor: Tensor) -> Tensor:
    """Sum over workers in place; returns the tensor."""
    if _active():
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    if _active():
        dist.barrier()


def device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
