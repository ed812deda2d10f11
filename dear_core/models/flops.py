"""What a clip costs: floating-point operations and parameters, by part.

Why: the paper's rows differ in accuracy by tenths; what each costs belongs beside them. Operations are
counted on the meta device, so nothing is computed and a ViT-B takes about a second. A model that is only
to be counted can be built there too (`without_weights`).

Convention: a multiply-add is 2 operations (papers that say "GFLOPs" for GMACs show half of this).
Counted: matrix products, convolutions and attention, by the formulas of torch's flop counter, the
selective scan and Mamba's short convolution, whose operators bring a formula each (`selective_scan`,
`causal_conv`). Not counted: norms, activations, softmax, additions, shifts.

The scan's formula is 9*B*L*D*N + 2*B*L*D a direction: 9 operations a state is the convention of the
counters published with VMamba and Vim (`flops_selective_scan_fn`), 2 more add D*u to the result.

The backward pass has, for each product, one as large for the gradient of its weight and one for that of
its input, where these are needed: a layer that reads frames has the first alone, a frozen tower none. A
scan counts twice its forward; states that a kernel computes again in the backward pass, to save memory,
are not counted.

What it does not do: it measures no time and no memory, and counts neither loss nor optimiser.

Legend: B clips, C colours, T frames, H W pixels, L tokens, D channels, N states.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry


@dataclass(frozen=True)
class Flops:
    """Operations for one clip, in total and by part (tower, each branch, each stream)."""

    total_flops: int
    by_part: dict[str, int]
    backward_by_part: dict[str, int] = field(default_factory=dict)

    @property
    def step_flops(self) -> int:
        """Forward and backward together; the forward alone if the backward was not asked for."""
        return self.total_flops + sum(self.backward_by_part.values())


def count(
    model: nn.Module, clip_shapes: Mapping[str, tuple[int, int, int, int]], *, backward: bool = False
) -> Flops:
    """Operations of one forward pass in eval mode and, if asked, of the backward pass that belongs to it.

    `model` is a `DEAR`; `clip_shapes` maps a modality to (C, T, H, W), one clip. The model is left as
    it was.

    Raises ValueError if a shape has not four entries.
    """
    for modality, shape in clip_shapes.items():
        if len(shape) != 4:
            raise ValueError(f"the shape of {modality!r} must be (C, T, H, W), got {shape}")
    clip = {name: torch.empty(1, *shape, device="meta") for name, shape in clip_shapes.items()}
    learning = {key for key, weight in model.named_parameters() if weight.requires_grad and backward}
    state = {
        key: torch.empty_like(value, device="meta").requires_grad_(key in learning)
        for key, value in model.state_dict().items()
    }
    meter = _Meter()
    with ExitStack() as stack:
        stack.enter_context(_eval_with_plain_attention(model))
        for name, part in parts(model):
            stack.enter_context(meter.watching(name, part))
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(meter.counter)
        functional_call(model, state, (clip,))
        total = meter.counter.total
        weights = {
            name: [state[key] for key in learning if key.startswith(f"{name}.")] for name, _ in parts(model)
        }
        steps = {name: meter.backward(name, group) for name, group in weights.items()} if backward else {}
    by_part = {name: meter.products.get(name, 0) for name, _ in parts(model)}
    return Flops(total_flops=total, by_part=by_part, backward_by_part=steps)


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameter counts."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a `DEAR` by their names as submodules: the tower, each branch, each stream."""
    if getattr(model, "tower", None) is not None:
        yield "tower", model.tower
    for group in ("branches", "streams"):
        for name, part in getattr(model, group).items():
            yield f"{group}.{name}", part


class _StayOnMeta(TorchFunctionMode):
    """A tensor without storage has nothing to move: `.to("cpu")` leaves it where it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.to and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """What is built in here has shapes and no numbers, and needs no memory for them.

    For counting only. open_clip, which moves each model it has built to a device, works in here and is
    kept from warning that it loaded no weights. Tensors that ask for the CPU by name get it.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with torch.device("meta"), _StayOnMeta():
            yield
    finally:
        logging.disable(before)


@contextmanager
def _eval_with_plain_attention(model: nn.Module) -> Iterator[None]:
    """Eval mode, and all attention as matrix products: some fused kernels are unknown to the counter."""
    was_training, was_fast = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
        model.train(was_training)


class _Counter(TorchDispatchMode):
    """Sums operations while it is entered; unlike FlopCounterMode it follows no modules, so that a
    backward pass may begin and end at any tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = func._overloadpacket
        if operator not in flop_registry:
            with self:  # a composite operator is counted by what it is made of
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        formula = flop_registry[operator]
        if operator is torch.ops.aten.convolution_backward:
            formula = _conv_backward
        self.total += formula(*args, **kwargs, out_val=out)
        return out


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, *settings: Any, out_val: Any) -> int:
    """As many operations as forwards for each gradient; torch's own formula forgets the groups."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = settings
    forwards = conv_flop_count(x.shape, weight.shape, grad.shape, transposed=transposed)
    return forwards * (wanted[0] + wanted[1])


class _Meter:
    """Credits to each part what runs inside it."""

    def __init__(self) -> None:
        self.counter = _Counter()
        self.products: dict[str, int] = {}
        self._calls: dict[str, list[tuple[list[Tensor], list[Tensor]]]] = {}

    @contextmanager
    def watching(self, name: str, part: nn.Module) -> Iterator[None]:
        """Measure `part` as `name` while it runs."""

        def enter(_module: nn.Module, _args: tuple, _kwargs: dict) -> None:
            self.products[name] = self.products.get(name, 0) - self.counter.total

        def leave(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            self.products[name] += self.counter.total
            call = (_differentiable((args, kwargs)), _differentiable(output))
            self._calls.setdefault(name, []).append(call)

        handles = [
            part.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(leave, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def backward(self, name: str, weights: list[Tensor]) -> int:
        """Operations from a part's outputs back to its weights and to those inputs that need a gradient."""
        before = self.counter.total
        for inputs, outputs in self._calls.get(name, []):
            if outputs and (weights or inputs):
                torch.autograd.grad(
                    outputs,
                    [*weights, *inputs],
                    grad_outputs=[torch.empty_like(output) for output in outputs],
                    retain_graph=True,
                    allow_unused=True,
                )
        return self.counter.total - before


def _differentiable(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]
