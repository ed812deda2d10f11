"""Every path of the selective scan equals the plain loop, values and gradients."""

import threading

import pytest
import torch

from dear_core.models.scan_numba import scan_compiled
from dear_core.models.scan_torch import linear_scan, scan_chunked
from dear_core.models.selective_scan import selective_scan, selective_scan_reference

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def random_inputs(batch, channels, length, states, *, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    inputs = {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length),
        "A": -draw(channels, states).exp(),
        "B": draw(batch, states, length),
        "C": draw(batch, states, length),
        "D": draw(channels),
        "z": draw(batch, channels, length),
        "delta_bias": draw(channels),
    }
    return [inputs[name].to(dtype).requires_grad_() for name in NAMES]


def run(scan, inputs, weight):
    y = scan(*inputs)
    grads = torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs, allow_unused=True)
    return y.detach(), grads


def test_equals_the_reference_file(reference, assert_close_to_peak):
    tensors = reference("selective_scan").tensors
    inputs = [tensors[name].clone().requires_grad_() for name in NAMES]
    y, grads = run(selective_scan, inputs, tensors["grad_out"])
    assert_close_to_peak(y, tensors["out"], 1e-5)
    for name, grad in zip(NAMES, grads, strict=True):
        assert_close_to_peak(grad, tensors[f"grad/{name}"], 1e-4)


SIZES = [(1, 1, 1, 1), (2, 5, 1, 3), (1, 7, 37, 1), (2, 70, 33, 4), (1, 64, 16, 16), (3, 129, 50, 2)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["numba", "chunked"])
def test_equals_the_loop_in_double_precision(size, dtype, assert_close_to_peak):
    weight = torch.randn(size[0], size[1], size[2], generator=torch.Generator().manual_seed(5))
    want_y, want = run(selective_scan_reference, random_inputs(*size, dtype=torch.float64), weight)
    got_y, got = run(selective_scan, random_inputs(*size, dtype=dtype), weight)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close_to_peak(got_y.double(), want_y, tolerance)
    for grad, right in zip(got, want, strict=True):
        assert_close_to_peak(grad.double(), right, 10 * tolerance)


def test_options_are_optional(assert_close_to_peak):
    u, delta, A, B, C, D, _, _ = random_inputs(2, 6, 20, 4)
    delta = delta.abs()
    got = selective_scan(u, delta, A, B, C, D, delta_softplus=False)
    want = selective_scan_reference(u, delta, A, B, C, D, delta_softplus=False)
    assert_close_to_peak(got, want, 1e-5)


def test_strong_decay_forgets_and_does_not_overflow():
    """exp(delta*A) far below float32's range must act as zero, not as noise."""
    u = torch.ones(1, 2, 40)
    y = scan_compiled(u, 50 * u, torch.full((2, 3), -1e4), torch.ones(1, 3, 40), torch.ones(1, 3, 40))
    torch.testing.assert_close(y, torch.full_like(y, 150.0))


def test_non_finite_inputs_reach_the_output():
    u, delta, A, B, C, *_ = (x.detach() for x in random_inputs(1, 3, 20, 2))
    u[0, 1, 4] = float("nan")
    y = scan_compiled(u, delta.abs(), A, B, C)
    assert y[0, 1, 4:].isnan().any()
    assert y[0, [0, 2]].isfinite().all()


def test_gradcheck_of_the_linear_scan():
    a = torch.rand(11, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(11, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a, x))


def test_float32_chunked_path_equals_the_compiled_one(assert_close_to_peak):
    u, delta, A, B, C, *_ = random_inputs(2, 40, 45, 4)
    delta = delta.abs()
    assert_close_to_peak(scan_chunked(u, delta, A, B, C), scan_compiled(u, delta, A, B, C), 1e-5)


def test_several_threads_may_scan_at_once():
    inputs = random_inputs(2, 130, 100, 16)
    weight = torch.randn(2, 130, 100)
    want_y, want = run(selective_scan, inputs, weight)
    wrong = []

    def work():
        for _ in range(5):
            y, grads = run(selective_scan, [x.detach().requires_grad_() for x in inputs], weight)
            same = [torch.equal(y, want_y), *map(torch.equal, grads, want)]
            wrong.extend(index for index, fits in enumerate(same) if not fits)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_number_of_threads_does_not_change_the_result():
    inputs = random_inputs(1, 300, 40, 4)
    weight = torch.randn(1, 300, 40)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(scan_compiled_of, inputs[:5], weight))
    finally:
        torch.set_num_threads(before)
    (y_one, grads_one), (y_three, grads_three) = results
    assert torch.equal(y_one, y_three)
    assert all(map(torch.equal, grads_one, grads_three))


def scan_compiled_of(u, delta, A, B, C):
    return scan_compiled(u, delta.abs(), A, B, C)


def test_half_precision_inputs_give_their_own_dtype():
    inputs = [x.detach().bfloat16() for x in random_inputs(1, 4, 9, 2)]
    y = selective_scan(*inputs)
    assert y.dtype == torch.bfloat16
    want = selective_scan_reference(*[x.float() for x in inputs])
    torch.testing.assert_close(y.float(), want, rtol=0.02, atol=0.02)


def test_misfitting_shapes_are_refused():
    u, delta, A, B, C, D, _, _ = random_inputs(2, 6, 20, 4)
    with pytest.raises(ValueError, match=r"B must be \[2, 4, 20\]"):
        selective_scan(u, delta, A, B[:, :, :-1], C, D)
