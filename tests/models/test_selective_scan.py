"""Every path of the selective scan equals the plain loop, values and gradients."""

import threading

import pytest
import torch

from dear_core.models.scan_torch import Direction, linear_scan, scan_chunked
from dear_core.models.selective_scan import scan_directions, selective_scan, selective_scan_reference

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


def flipped_reference(u, delta, A, B, C, D, z, bias):
    u, delta, B, C, z = (x.flip(-1) for x in (u, delta, B, C, z))
    return selective_scan_reference(u, delta, A, B, C, D, z, bias).flip(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["numba", "chunked"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_reverse_is_the_scan_of_the_flipped_sequence(dtype, channels_last, assert_close_to_peak):
    weight = torch.randn(2, 70, 33, generator=torch.Generator().manual_seed(5))
    want_y, want = run(flipped_reference, random_inputs(2, 70, 33, 4, dtype=torch.float64), weight)
    inputs = random_inputs(2, 70, 33, 4, dtype=dtype)
    if channels_last:
        inputs = [last_axis_slow(x) for x in inputs]
    got_y, got = run(lambda *args: selective_scan(*args, reverse=True), inputs, weight)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close_to_peak(got_y.double(), want_y, tolerance)
    for grad, right in zip(got, want, strict=True):
        assert_close_to_peak(grad.double(), right, 10 * tolerance)


def last_axis_slow(x):
    """The same values, [B, D, L] laid out as [B, L, D + 3] so that rows are not dense either."""
    if x.ndim < 3:
        return x
    memory = torch.zeros(x.shape[0], x.shape[2], x.shape[1] + 3, dtype=x.dtype)
    memory[..., : x.shape[1]] = x.detach().transpose(1, 2)
    return memory[..., : x.shape[1]].transpose(1, 2).requires_grad_()


def test_two_directions_at_once_equal_two_scans():
    ahead = random_inputs(2, 70, 33, 4)
    back = random_inputs(2, 70, 33, 4, seed=1)
    both = scan_directions(
        [Direction(*(ahead[:6] + ahead[7:]), False), Direction(*(back[:6] + back[7:]), True)]
    )
    alone = [
        selective_scan(*ahead[:6], None, ahead[7]),
        selective_scan(*back[:6], None, back[7], reverse=True),
    ]
    assert all(map(torch.equal, both, alone))


def test_options_are_optional(assert_close_to_peak):
    u, delta, A, B, C, D, _, _ = random_inputs(2, 6, 20, 4)
    delta = delta.abs()
    got = selective_scan(u, delta, A, B, C, D, delta_softplus=False)
    want = selective_scan_reference(u, delta, A, B, C, D, delta_softplus=False)
    assert_close_to_peak(got, want, 1e-5)


@pytest.mark.parametrize("raw", [-60.0, -15.0, -1.0, -1e-4, 0.0, 0.3, 5.0, 40.0])
def test_softplus_and_its_slope_keep_their_relative_precision(raw):
    """One step, so y = softplus(delta) * u * B * C: small step sizes must not lose their digits."""
    delta = torch.full((1, 1, 1), raw, requires_grad=True)
    one = torch.ones(1, 1, 1)
    y = selective_scan(one, delta, torch.zeros(1, 1), one, one, torch.zeros(1))
    y.backward(one)
    exact = delta.detach().double().requires_grad_()
    want = torch.nn.functional.softplus(exact, threshold=100)
    want.backward(one.double())
    torch.testing.assert_close(y.double(), want, rtol=5e-6, atol=1e-37)
    torch.testing.assert_close(delta.grad.double(), exact.grad, rtol=5e-6, atol=1e-37)


def test_strong_decay_forgets_and_does_not_overflow():
    """exp(delta*A) far below float32's range must act as zero, not as noise."""
    u, three = torch.ones(1, 2, 40), torch.ones(1, 3, 40)
    A, D = torch.full((2, 3), -1e4), torch.zeros(2)
    y = selective_scan(u, 50 * u, A, three, three, D, delta_softplus=False)
    torch.testing.assert_close(y, torch.full_like(y, 150.0))


def test_non_finite_inputs_reach_the_output():
    u, delta, A, B, C, D, *_ = (x.detach() for x in random_inputs(1, 3, 20, 2))
    u[0, 1, 4] = float("nan")
    y = selective_scan(u, delta, A, B, C, D)
    assert y[0, 1, 4:].isnan().any()
    assert y[0, [0, 2]].isfinite().all()
    delta[0, 2, 7] = float("nan")
    assert selective_scan(u, delta, A, B, C, D)[0, 2, 7:].isnan().any()


def test_memory_beyond_inputs_and_outputs_is_bounded():
    """States are recomputed, not kept: all 16 of them would take 16 times the memory of u."""
    inputs = random_inputs(1, 256, 640, 16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        y = selective_scan(*inputs[:6], None, inputs[7])
    own = {x.data_ptr() for x in inputs} | {y.data_ptr()}
    extra = sum(x.numel() for x in kept if x.data_ptr() not in own)
    assert 0 < extra <= 1.5 * (sum(x.numel() for x in inputs[:6]) + y.numel())


def test_gradcheck_of_the_linear_scan():
    a = torch.rand(11, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(11, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a, x))


def test_float32_chunked_path_equals_the_compiled_one(assert_close_to_peak):
    u, delta, A, B, C, D, _, bias = random_inputs(2, 40, 45, 4)
    for reverse in (False, True):
        direction = Direction(u, delta, A, B, C, D, bias, reverse)
        (compiled,) = scan_directions([direction])
        assert_close_to_peak(scan_chunked(direction, softplus=True), compiled, 1e-5)


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
            results.append(run(selective_scan, inputs, weight))
    finally:
        torch.set_num_threads(before)
    (y_one, grads_one), (y_three, grads_three) = results
    assert torch.equal(y_one, y_three)
    assert all(map(torch.equal, grads_one, grads_three))


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


@pytest.mark.slow
def test_operators_keep_torchs_rules():
    """Schema, fake tensors and strides agree with what the kernels really return."""
    for channels_last, channels in ((False, 70), (True, 70), (True, 32)):
        inputs = random_inputs(2, channels, 33, 4)
        inputs = [last_axis_slow(x) if channels_last else x for x in inputs]
        tensors = [x.detach() for x in inputs[:6] + inputs[7:]]
        forward, backward = torch.ops.dear.scan_forward, torch.ops.dear.scan_backward
        assert set(torch.library.opcheck(forward, (tensors, [True], True, True)).values()) == {"SUCCESS"}
        assert set(torch.library.opcheck(forward, (tensors, [False], True, False)).values()) == {"SUCCESS"}
        y, starts = forward(tensors, [True], True, True)
        assert set(torch.library.opcheck(backward, (tensors, [starts], [y], [True], True)).values()) == {
            "SUCCESS"
        }


def test_a_compiled_graph_does_not_break_at_the_scan():
    inputs = [x.detach().requires_grad_() for x in random_inputs(1, 70, 20, 4)]
    weight = torch.randn(1, 70, 20)
    want_y, want = run(selective_scan, inputs, weight)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    got_y, got = run(compiled, inputs, weight)
    torch.testing.assert_close(got_y, want_y)
    for grad, right in zip(got, want, strict=True):
        torch.testing.assert_close(grad, right)
