"""The Triton scan equals the plain loop, and compiles for the GPUs it is meant for.

There is no GPU here. Triton's interpreter runs the kernels' own code on the CPU, but it must be asked
for before Triton is first imported, so the tests marked `interpreted` run in a process of their own,
which `test_the_interpreter_agrees` starts. The compiler needs no GPU either.
"""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from dear_core.models import scan_triton
from dear_core.models.scan_torch import Direction, selective_scan_reference
from dear_core.models.scan_triton import Tile, scan_backward, scan_forward, starts_shape

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreter_agrees")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def random_direction(batch, channels, length, states, *, reverse, dtype=torch.float32, channel_last=True,
                     seed=0, device="cpu", rank=3):  # fmt: skip
    generator = torch.Generator().manual_seed(int(seed))

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    def tokens(width):
        if channel_last:
            return draw(batch, length, width).to(dtype).transpose(1, 2)
        return draw(batch, width, length).to(dtype)

    B_BNL, C_BNL = tokens(rank + 2 * states)[:, rank:].split(states, dim=1)
    A_DN, D_D, bias_D = -draw(channels, states).exp(), draw(channels), draw(channels)
    return Direction(tokens(channels), tokens(channels), A_DN, B_BNL, C_BNL, D_D, bias_D, reverse)


def expected(direction, dy_BDL, softplus):
    """y and all gradients of the loop in double precision."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in direction[:7]]
    u, delta, A, B, C, D, bias = inputs
    if direction.reverse:
        u, delta, B, C = (tensor.flip(-1) for tensor in (u, delta, B, C))
    y_BDL = selective_scan_reference(u, delta, A, B, C, D, None, bias, softplus)
    y_BDL = y_BDL.flip(-1) if direction.reverse else y_BDL
    return y_BDL.detach(), torch.autograd.grad(y_BDL, inputs, dy_BDL.double())


def check(directions, assert_close_to_peak, *, softplus=True, tolerance=1e-5):
    ys, starts = scan_forward(directions, softplus=softplus, save=True)
    dys = [torch.randn_like(one.u_BDL) for one in directions]
    gradients = scan_backward(directions, starts, dys, softplus=softplus)
    for one, y, dy, grads in zip(directions, ys, dys, gradients, strict=True):
        want_y, want = expected(one, dy, softplus)
        assert y.dtype == one.u_BDL.dtype
        assert y.stride() == one.u_BDL.stride()
        assert_close_to_peak(y.double(), want_y, tolerance)
        for name, tensor, grad, right in zip(NAMES, one, grads, want, strict=False):
            assert grad.dtype == tensor.dtype, name
            assert_close_to_peak(grad.double(), right, tolerance)


@compiled
@pytest.mark.parametrize(
    ("chosen", "least"), [("half", 2), pytest.param("", 14, marks=pytest.mark.slow)], ids=["quick", "all"]
)
@pytest.mark.slow
def test_the_interpreter_agrees(chosen, least):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not gpu",
            "-k",
            chosen,
            __file__,
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = int(re.search(r"(\d+) passed", run.stdout)[1])
    assert passed >= least, run.stdout


SIZES = [(1, 1, 1, 1), (2, 5, 1, 3), (1, 7, 37, 1), (2, 70, 19, 4), (1, 65, 16, 16), (1, 3, 9, 33)]


@interpreted
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_directions_equal_the_loop(size, assert_close_to_peak):
    check([random_direction(*size, reverse=reverse, seed=reverse) for reverse in (False, True)],
          assert_close_to_peak)  # fmt: skip


@interpreted
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_one_direction_equals_the_loop(reverse, assert_close_to_peak):
    check([random_direction(2, 5, 18, 4, reverse=reverse)], assert_close_to_peak)


@interpreted
@pytest.mark.parametrize("layouts", [(False, False), (True, False)], ids=["channel first", "mixed"])
def test_any_strides(layouts, assert_close_to_peak):
    directions = [
        random_direction(2, 6, 11, 4, reverse=not last, channel_last=last, seed=last) for last in layouts
    ]
    ys, _ = scan_forward(directions, softplus=True, save=False)
    for one, y in zip(directions, ys, strict=True):
        assert_close_to_peak(y.double(), expected(one, torch.zeros_like(y), True)[0], 1e-5)
    if layouts == (False, False):
        check(directions, assert_close_to_peak)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, assert_close_to_peak):
    check([random_direction(1, 6, 20, 16, reverse=reverse, dtype=dtype) for reverse in (True, False)],
          assert_close_to_peak, tolerance=2e-2)  # fmt: skip


@interpreted
def test_without_softplus(assert_close_to_peak):
    one = random_direction(1, 5, 18, 4, reverse=True)
    one = one._replace(delta_BDL=one.delta_BDL.abs(), bias_D=torch.zeros_like(one.bias_D))
    check([one], assert_close_to_peak, softplus=False)


@interpreted
def test_states_are_kept_on_request_only():
    one = random_direction(1, 5, 18, 4, reverse=False)
    (y,), (nothing,) = scan_forward([one], softplus=True, save=False)
    (same,), (starts,) = scan_forward([one], softplus=True, save=True)
    assert nothing.numel() == 0
    assert starts.shape == starts_shape(one.u_BDL, one.A_DN)
    assert starts.shape[2] == 2
    assert torch.equal(y, same)


@interpreted
def test_extreme_steps_stay_finite():
    """A step of 100 forgets everything, a step of 1e-9 keeps everything; neither overflows."""
    one = random_direction(1, 2, 18, 4, reverse=False)
    one = one._replace(delta_BDL=torch.where(torch.arange(18) % 2 == 0, 100.0, -20.0).expand(1, 2, 18))
    (y,), starts = scan_forward([one], softplus=True, save=True)
    (grads,) = scan_backward([one], starts, [torch.ones_like(y)], softplus=True)
    want_y, want = expected(one, torch.ones_like(y), True)
    torch.testing.assert_close(y.double(), want_y, rtol=1e-4, atol=1e-4)
    for grad, right in zip(grads, want, strict=True):
        torch.testing.assert_close(grad.double(), right, rtol=1e-3, atol=1e-3)


@interpreted
def test_equals_the_reference_file(reference, assert_close_to_peak):
    tensors = reference("selective_scan").tensors
    one = Direction(*(tensors[name] for name in NAMES), False)
    (y_BDL,), starts = scan_forward([one], softplus=True, save=True)
    z_BDL = tensors["z"].requires_grad_()
    assert_close_to_peak(y_BDL * torch.nn.functional.silu(z_BDL.detach()), tensors["out"], 1e-5)
    dy_BDL = tensors["grad_out"] * torch.nn.functional.silu(z_BDL.detach())
    (grads,) = scan_backward([one], starts, [dy_BDL], softplus=True)
    for name, grad in zip(NAMES, grads, strict=True):
        assert_close_to_peak(grad, tensors[f"grad/{name}"], 1e-4)


def test_a_tile_fills_warps_for_any_number_of_states():
    for states in range(1, 257):
        tile = Tile.of(states)
        assert tile.states >= states
        assert tile.states < 2 * states
        assert tile.K * tile.Q == 32
        assert tile.S % tile.Q == 0


class FakeDriver:
    """As much of a GPU's driver as Triton asks for when it compiles without a launch."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps what it has compiled by device

    def get_current_stream(self, _device=None):
        return 0


@pytest.fixture
def compile_for(monkeypatch):
    """A function that makes `scan_triton` compile for a capability; gives the compiled kernels."""

    def prepare(capability):
        monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver(capability))
        found, kernels = [], scan_triton._kernels()

        class Recorder:
            def __init__(self, kernel):
                self.kernel = kernel

            def __getitem__(self, grid):
                return lambda *args, **kw: found.append(self.kernel.warmup(*args, grid=grid, **kw))

        stand_in = types.SimpleNamespace(
            forward=Recorder(kernels.forward), backward=Recorder(kernels.backward)
        )
        monkeypatch.setattr(scan_triton, "_kernels", lambda: stand_in)
        return found

    return prepare


def registers_and_stack(kernel, folder):
    """Registers a thread, and bytes of local memory a thread (what did not fit into registers)."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK"))


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", [80, 90], ids=lambda capability: f"sm_{capability}")
@pytest.mark.slow
def test_kernels_compile_and_fit_registers(capability, dtype, compile_for, tmp_path):
    """The forward spills nothing, the backward little (with Triton 3.6 as with 3.8, see the figures)."""
    found = compile_for(capability)
    directions = [
        random_direction(2, 192, 37, 16, reverse=reverse, dtype=dtype, rank=24) for reverse in (False, True)
    ]
    ys, starts = scan_forward(directions, softplus=True, save=True)
    scan_backward(directions, starts, ys, softplus=True)
    forward, backward = (registers_and_stack(kernel, tmp_path) for kernel in found)
    print(f"sm_{capability} {dtype}: forward {forward}, backward {backward}")
    assert forward[0] <= scan_triton.FORWARD_REGISTERS
    assert forward[1] == 0
    # 3.8: 56 and 64 on sm_90, 192 and 152 on sm_80; 3.6: 208 and 40, 352 and 152 (bf16, float32).
    assert backward[1] <= 384


@compiled
def test_one_direction_compiles(compile_for):
    found = compile_for(90)
    one = random_direction(1, 8, 1, 3, reverse=False)
    scan_forward([one], softplus=False, save=False)
    assert "ex2.approx.ftz.f32" in found[0].asm["ptx"]


@compiled
@pytest.mark.slow
def test_a_machine_without_triton_is_told_apart():
    code = """
import sys
sys.modules["triton"] = None
from dear_core.models import scan_triton
sys.exit(scan_triton.available())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert scan_triton.available()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_gpu(dtype, assert_close_to_peak):
    directions = [
        random_direction(2, 200, 133, 16, reverse=reverse, dtype=dtype, device="cuda")
        for reverse in (False, True)
    ]
    check(directions, assert_close_to_peak, tolerance=1e-4 if dtype == torch.float32 else 2e-2)
