"""What a clip costs: floating-point operations and parameters, by part.

Why: the paper's rows differ in accuracy by tenths; what each costs belongs beside them. Operations are
counted on the meta device, so nothing is computed and a ViT-B takes about a second.

Convention: a multiply-add is 2 operations (papers that say "GFLOPs" for GMACs show half of this).
Counted: matrix products, convolutions and attention, by torch's FlopCounterMode, and the selective
scan by formula. Not counted: norms, activations, softmax, additions, shifts.

The scan's formula is 9*B*L*D*N + 2*B*L*D a direction: 9 operations a state is the convention of the
counters published with VMamba and Vim (`flops_selective_scan_fn`), 2 more add D*u to the result.

What it does not do: it measures no time and no memory.

Legend: B clips, C colours, T frames, H W pixels, L tokens, D channels, N states.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from dear_core.models.videomamba import MambaMixer


@dataclass(frozen=True)
class Flops:
    """Operations for one clip, in total and by part (tower, each branch, each stream)."""

    total_flops: int
    by_part: dict[str, int]


def count(model: nn.Module, clip_shapes: Mapping[str, tuple[int, int, int, int]]) -> Flops:
    """Operations of one forward pass in eval mode.

    `model` is a `DEAR`; `clip_shapes` maps a modality to (C, T, H, W), one clip. The model is left as
    it was, but for the tower's `forward_count`.

    Raises ValueError if a shape has not four entries.
    """
    for modality, shape in clip_shapes.items():
        if len(shape) != 4:
            raise ValueError(f"the shape of {modality!r} must be (C, T, H, W), got {shape}")
    clip = {name: torch.empty(1, *shape, device="meta") for name, shape in clip_shapes.items()}
    state = {key: torch.empty_like(value, device="meta") for key, value in model.state_dict().items()}
    counter = FlopCounterMode(display=False)
    extra: dict[str, int] = {}
    parts: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(_eval_without_fast_path(model))
        for name, part in _parts(model):
            stack.enter_context(_measured(name, part, counter, parts, extra))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        functional_call(model, state, (clip,))
    total = counter.get_total_flops() + sum(extra.values())
    by_part = {name: parts.get(name, 0) + extra.get(name, 0) for name, _ in _parts(model)}
    return Flops(total_flops=total, by_part=by_part)


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameter counts."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if getattr(model, "tower", None) is not None:
        yield "tower", model.tower
    for group in ("branches", "streams"):
        for name, part in getattr(model, group).items():
            yield f"{group}.{name}", part


@contextmanager
def _eval_without_fast_path(model: nn.Module) -> Iterator[None]:
    """Eval mode, and attention through the operators that FlopCounterMode knows."""
    was_training, was_fast = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
        model.train(was_training)


@contextmanager
def _measured(
    name: str,
    part: nn.Module,
    counter: FlopCounterMode,
    parts: dict[str, int],
    extra: dict[str, int],
) -> Iterator[None]:
    """Credit what runs inside `part` to `name`, and add what the counter cannot see."""

    def enter(_module: nn.Module, _inputs: tuple) -> None:
        parts[name] = parts.get(name, 0) - counter.get_total_flops()

    def leave(_module: nn.Module, _inputs: tuple, _output: object) -> None:
        parts[name] += counter.get_total_flops()

    def add_scans(mixer: MambaMixer, inputs: tuple[Tensor, ...]) -> None:
        extra[name] = extra.get(name, 0) + _scan_flops(mixer, inputs[0])

    handles = [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    for module in part.modules():
        if isinstance(module, MambaMixer):
            handles.append(module.register_forward_pre_hook(add_scans))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scan_flops(mixer: MambaMixer, x_BLD: Tensor) -> int:
    """Both directions' scans."""
    inner, states = mixer.A_log.shape
    return 2 * x_BLD.shape[0] * x_BLD.shape[1] * inner * (9 * states + 2)
