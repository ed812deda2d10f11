"""The training step of the paper's four rows: built, checked, measured, profiled. For `gpu.py`.

What it does not do: no data loading, no distributed training, no learning-rate schedule.

Legend: B clips, K classes.
"""

import copy
import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import median_time
from dear_core.models import DEAR, Side4Video, VideoMamba, build_tower, count, random_tower

RGB, DEPTH, MAMBA = "rgb:side4video", "depth:side4video", "depth:videomamba"
ROWS = {
    "RGB": (RGB,),
    "RGB + Depth (VideoMamba)": (RGB, MAMBA),
    "RGB + Depth": (RGB, DEPTH),
    "RGB + Depth + Depth (VideoMamba)": (RGB, DEPTH, MAMBA),
}
LOGITS_TOLERANCE = 5e-2  # of the largest logit; bf16 keeps 8 bits: 4e-3 a rounding, through 12 blocks
LOSS_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Size:
    """The paper's, or one that a CPU runs in seconds."""

    tiny: bool

    @property
    def frames(self) -> int:
        return 3 if self.tiny else 8

    @property
    def image(self) -> int:
        return 24 if self.tiny else 224

    @property
    def classes(self) -> int:
        return 5 if self.tiny else 174

    def shapes(self, keys: tuple[str, ...]) -> dict[str, tuple[int, int, int, int]]:
        """(C, T, H, W) of each modality; depth has one channel."""
        names = dict.fromkeys(key.split(":")[0] for key in keys)
        image = self.image
        return {name: (1 if name == "depth" else 3, self.frames, image, image) for name in names}

    def model(self, keys: tuple[str, ...]) -> DEAR:
        """In float32 on the CPU, weights drawn anew from seed 0."""
        torch.manual_seed(0)
        patch = 8 if self.tiny else 16
        if self.tiny:
            tower = random_tower(width=64, layers=2, heads=2, patch_size=patch, image_size=24, seed=0)
        else:
            tower = build_tower("ViT-B-16")
        grid = {"patch_size": patch, "image_size": self.image, "num_frames": self.frames}
        widths = {"dim": 64 if self.tiny else 320}
        widths |= {"tower_width": tower.width, "tower_layers": tower.layers}
        mamba = {"embed_dim": 32, "depth": 2} if self.tiny else {"embed_dim": 384, "depth": 24}
        branches: dict[str, nn.Module] = {
            key: VideoMamba(**grid, **mamba) if key == MAMBA else Side4Video(**grid, **widths) for key in keys
        }
        return DEAR(tower=tower, branches=branches, num_classes=self.classes)


def make_batch(
    size: Size, keys: tuple[str, ...], batch: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Random clips and labels."""
    generator = torch.Generator().manual_seed(1)
    clip = {
        name: torch.randn(batch, *shape, generator=generator).to(device)
        for name, shape in size.shapes(keys).items()
    }
    return clip, torch.randint(size.classes, (batch,), generator=generator).to(device)


def check(size: Size, keys: tuple[str, ...], device: torch.device) -> dict[str, float]:
    """How far bf16 is from float32 on equal weights: errors of logits (of their peak) and of the loss."""
    exact = size.model(keys).to(device)
    fast = copy.deepcopy(exact)
    fast.tower.to(torch.bfloat16)
    clip, labels = make_batch(size, keys, 4, device)
    want = exact(clip).detach()
    with torch.autocast(device.type, torch.bfloat16):
        got = fast(clip).detach().float()
    losses = [F.cross_entropy(logits, labels).item() for logits in (want, got)]
    return {
        "logits": ((got - want).abs().max() / want.abs().max()).item(),
        "loss": abs(losses[1] - losses[0]) / abs(losses[0]),
    }


def make_step(
    size: Size, keys: tuple[str, ...], batch: int, device: torch.device, *, compiled: bool
) -> Callable[[], None]:
    """Forward, cross-entropy, backward, fused AdamW, zero_grad; the tower in bf16."""
    model = size.model(keys).to(device)
    model.tower.to(torch.bfloat16)
    model.train()
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-4, fused=True
    )
    clip, labels = make_batch(size, keys, batch, device)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits_BK = forward(clip)
        F.cross_entropy(logits_BK.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(
    size: Size, keys: tuple[str, ...], batch: int, device: torch.device, *, compiled: bool, steps: int
) -> dict[str, float | str]:
    """Seconds a step, clips a second, operations a second and peak memory; or "out of memory"."""
    on_gpu = device.type == "cuda"
    try:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        step = make_step(size, keys, batch, device, compiled=compiled)
        seconds = median_time(step, repeats=steps, warmup=3, device=device)
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    except torch._dynamo.exc.TorchDynamoException as error:
        return {"error": f"not compiled: {type(error).__name__}"}
    finally:
        step = None
        release(on_gpu)
    result: dict[str, float | str] = {"seconds": seconds, "clips_per_second": batch / seconds}
    result["flops_per_second"] = step_flops(size, keys) * batch / seconds
    if on_gpu:
        result["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return result


def release(on_gpu: bool) -> None:
    """Forget compiled graphs and what they hold."""
    torch.compiler.reset()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


@functools.cache
def step_flops(size: Size, keys: tuple[str, ...]) -> int:
    """Operations of a training step for one clip: forward F, and backward by `count`."""
    return count(size.model(keys), size.shapes(keys), backward=True).step_flops


def profile(size: Size, keys: tuple[str, ...], batch: int, device: torch.device, *, compiled: bool) -> str:
    """The kernels (on a CPU, the operators) that take longest, over three steps."""
    step = make_step(size, keys, batch, device, compiled=compiled)
    for _ in range(3):
        step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=90)
