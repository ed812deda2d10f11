"""Gated cross-attention: what the gates do at their limits, and who reads whom."""

import pytest
import torch

from dear_core.models import GatedCrossAttention, PairFusion

PAIR = {"dims": (16, 24), "heads": 4, "layers": 1, "num_classes": 5}


@pytest.mark.parametrize("gate", ["tanh", "sigmoid", "none"])
@pytest.mark.parametrize("mlp_ratio", [0.0, 2.0])
def test_shape_and_gradient_of_every_parameter(gate, mlp_ratio):
    layer = GatedCrossAttention(dim=16, context_dim=24, heads=4, gate=gate, mlp_ratio=mlp_ratio)
    out = layer(torch.randn(2, 3, 16), torch.randn(2, 7, 24))
    assert out.shape == (2, 3, 16)
    out.square().sum().backward()
    for name, weight in layer.named_parameters():
        if name == "key_value.bias":  # a bias of all keys alike moves no softmax; values' half does
            assert weight.grad[16:].abs().max() > 0
        else:
            assert weight.grad.abs().max() > 0, name


def test_a_tanh_gate_at_zero_is_closed_and_learns_first():
    layer = GatedCrossAttention(dim=16, context_dim=24, heads=4, gate="tanh", gate_init=0.0)
    x = torch.randn(2, 3, 16)
    out = layer(x, torch.randn(2, 7, 24))
    assert torch.equal(out, x)
    out.sum().backward()
    assert layer.gate.alpha.grad.abs() > 0
    assert layer.out.weight.grad.abs().max() == 0


def test_the_sigmoid_gate_scales_each_channel():
    torch.manual_seed(0)
    gated = GatedCrossAttention(dim=16, context_dim=24, heads=4, gate="sigmoid", gate_init=0.0)
    plain = GatedCrossAttention(dim=16, context_dim=24, heads=4, gate="none")
    plain.load_state_dict(gated.state_dict(), strict=False)
    x, context = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    share = (gated(x, context) - x) / (plain(x, context) - x)
    torch.testing.assert_close(share, gated.gate.linear(gated.norm(x)).sigmoid(), atol=1e-3, rtol=0)
    assert share.std() > 0.01


def test_order_of_the_context_does_not_matter():
    layer = GatedCrossAttention(dim=16, context_dim=24, heads=4)
    x, context = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    torch.testing.assert_close(layer(x, context), layer(x, context.flip(1)))


@pytest.mark.parametrize(
    ("direction", "a_reads", "b_reads"),
    [("both", 2, 2), ("a_to_b", 0, 2), ("b_to_a", 2, 0)],
)
def test_direction_says_who_queries(direction, a_reads, b_reads):
    pair = PairFusion(**PAIR | {"layers": 2}, direction=direction)
    assert (len(pair.a_reads_b), len(pair.b_reads_a)) == (a_reads, b_reads)
    assert pair(torch.randn(2, 3, 16), torch.randn(2, 7, 24)).shape == (2, 5)


def test_each_side_reads_the_other_unfused():
    pair = PairFusion(**PAIR).eval()
    seen = {}
    pair.a_reads_b[0].register_forward_pre_hook(lambda _m, args: seen.update(a=args[1]))
    pair.b_reads_a[0].register_forward_pre_hook(lambda _m, args: seen.update(b=args[1]))
    a, b = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    pair(a, b)
    assert seen["a"] is b
    assert seen["b"] is a


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="heads=5 must divide"):
        PairFusion(**PAIR | {"heads": 5})
    with pytest.raises(ValueError, match="direction="):
        PairFusion(**PAIR, direction="sideways")
    with pytest.raises(ValueError, match="gate="):
        GatedCrossAttention(dim=8, context_dim=8, heads=2, gate="relu")
