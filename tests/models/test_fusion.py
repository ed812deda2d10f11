"""Fusion: what the gates do at their limits, who reads whom, the baselines, and how streams combine."""

import pytest
import torch

from dear_core.models import GatedCrossAttention, PairFusion
from dear_core.models.fusion import PairConcat, PairSum
from dear_core.training.optim import parameter_groups

PAIR = {"dims": (16, 24), "heads": 4, "layers": 1, "num_classes": 5}
FULL = ("rgb:side4video", "depth:side4video", "depth:videomamba")
OPTIONS = [  # every option of every choice, those of the paper first
    *({"kind": kind} for kind in ("cross_attention", "concat", "sum", "scores")),
    *({"gate": gate, "mlp_ratio": 2.0} for gate in ("sigmoid", "none")),
    *({"direction": direction, "layers": 2} for direction in ("first_to_other", "other_to_first")),
    {"tokens": "patch"},
    *({"combine": combine} for combine in ("learned", "max", "mean_prob")),
    {"kind": "scores", "combine": "learned"},
]


def option_id(option):
    return ",".join(map(str, option.values()))


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
    ("direction", "first_reads", "other_reads"),
    [("both", 2, 2), ("first_to_other", 0, 2), ("other_to_first", 2, 0)],
)
def test_direction_says_where_information_flows(direction, first_reads, other_reads):
    pair = PairFusion(**PAIR | {"layers": 2}, direction=direction)
    assert (len(pair.first_reads_other), len(pair.other_reads_first)) == (first_reads, other_reads)
    assert pair(torch.randn(2, 3, 16), torch.randn(2, 7, 24)).shape == (2, 5)


def test_first_to_other_carries_the_first_into_the_other():
    """The other's half of the head sees both sides, the first's half only the first."""
    pair = PairFusion(**PAIR, direction="first_to_other")
    first = torch.randn(2, 3, 16, requires_grad=True)
    other = torch.randn(2, 7, 24, requires_grad=True)
    with torch.no_grad():
        pair.head.weight[:, :16] = 0
    from_first, from_other = torch.autograd.grad(pair(first, other).square().sum(), [first, other])
    assert from_first.abs().max() > 0 and from_other.abs().max() > 0
    with torch.no_grad():
        pair.head.weight[:, :16] = 1
        pair.head.weight[:, 16:] = 0
    from_first, from_other = torch.autograd.grad(pair(first, other).square().sum(), [first, other])
    assert from_first.abs().max() > 0 and from_other.abs().max() == 0


def test_each_side_reads_the_other_unfused():
    pair = PairFusion(**PAIR).eval()
    seen = {}
    pair.first_reads_other[0].register_forward_pre_hook(lambda _m, args: seen.update(first=args[1]))
    pair.other_reads_first[0].register_forward_pre_hook(lambda _m, args: seen.update(other=args[1]))
    first, other = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    pair(first, other)
    assert seen["first"] is other
    assert seen["other"] is first


def test_attention_equals_its_formula():
    layer = GatedCrossAttention(dim=16, context_dim=24, heads=2, gate="tanh", gate_init=0.7)
    x, context = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    q = layer.query(layer.norm(x))
    k, v = layer.key_value(layer.context_norm(context)).split(16, dim=-1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(weights @ v[..., part])
    update = layer.out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(layer(x, context), x + torch.tensor(0.7).tanh() * update)


def test_concatenation_and_sum_equal_their_formulas():
    first, other = torch.randn(4, 16), torch.randn(4, 24)
    concat = PairConcat(dims=(16, 24), num_classes=5)
    normed = [(x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
              for x in (first, other)]  # fmt: skip
    torch.testing.assert_close(concat(first, other), concat.head(torch.cat(normed, dim=1)))
    total = PairSum(dims=(16, 24), num_classes=5)
    projected = [total.project_first(first), total.project_other(other)]
    normed = [torch.nn.functional.layer_norm(x, (16,)) for x in projected]
    torch.testing.assert_close(total(first, other), total.head(normed[0] + normed[1]))


def test_scores_start_small_whatever_the_scale_of_the_features():
    torch.manual_seed(0)
    options = {"dims": (64, 96), "num_classes": 500}
    first, other = 30 * torch.randn(8, 64), 0.1 * torch.randn(8, 96)
    tokens = (30 * torch.randn(8, 5, 64), 0.1 * torch.randn(8, 7, 96))
    with torch.no_grad():
        paper = PairFusion(**options, heads=4, layers=1)(*tokens)
        concat, total = (kind(**options)(first, other) for kind in (PairConcat, PairSum))
    assert paper.std().item() == pytest.approx(0.58, abs=0.06)
    assert concat.std().item() == pytest.approx(0.58, abs=0.06)
    assert total.std().item() == pytest.approx(0.82, abs=0.08)


@pytest.mark.parametrize("gate", ["tanh", "sigmoid"])
def test_gates_are_not_decayed(gate):
    layer = GatedCrossAttention(dim=16, context_dim=24, heads=4, gate=gate, mlp_ratio=2.0)
    names = {id(weight): name for name, weight in layer.named_parameters()}
    decayed, _plain = parameter_groups(layer, 0.1)
    assert {names[id(weight)] for weight in decayed["params"]} == {
        *("query.weight", "key_value.weight", "out.weight", "mlp.0.weight", "mlp.3.weight")
    }


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="heads=5 must divide"):
        PairFusion(**PAIR | {"heads": 5})
    with pytest.raises(ValueError, match="direction="):
        PairFusion(**PAIR, direction="sideways")
    with pytest.raises(ValueError, match="layers=0 must be at least 1"):
        PairFusion(**PAIR | {"layers": 0})
    with pytest.raises(ValueError, match=r"mlp_ratio=0\.01 leaves no hidden unit"):
        PairFusion(**PAIR, mlp_ratio=0.01)
    with pytest.raises(ValueError, match="gate="):
        GatedCrossAttention(dim=8, context_dim=8, heads=2, gate="relu")


def test_learned_weights_start_as_the_mean_and_follow_their_numbers(make_dear, make_clip):
    clip = make_clip("rgb", "depth")
    mean, learned = (make_dear(*FULL, combine=one).eval() for one in ("mean", "learned"))
    torch.testing.assert_close(learned(clip), mean(clip))
    with torch.no_grad():
        learned.stream_weights.copy_(torch.tensor([0.0, 1.0]))
    first, second = learned.stream_logits(clip).values()
    share = 1 / (1 + torch.e)
    torch.testing.assert_close(learned(clip), share * first + (1 - share) * second)


def test_the_largest_scores_and_the_mean_of_probabilities(make_dear, make_clip):
    clip = make_clip("rgb", "depth")
    largest, probable = (make_dear(*FULL, combine=one).eval() for one in ("max", "mean_prob"))
    first, second = largest.stream_logits(clip).values()
    assert torch.equal(largest(clip), torch.maximum(first, second))
    streams = torch.stack(list(probable.stream_logits(clip).values()))
    torch.testing.assert_close(probable(clip).exp(), streams.softmax(-1).mean(0))


@pytest.mark.parametrize("combine", ["mean", "learned", "max", "mean_prob"])
def test_one_stream_is_handed_on_as_it_is(combine, make_dear, make_clip):
    model, clip = make_dear(*FULL[:2], combine=combine).eval(), make_clip("rgb", "depth")
    assert not hasattr(model, "stream_weights")
    (logits,) = model.stream_logits(clip).values()
    assert torch.equal(model(clip), logits)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS, ids=option_id)
def test_fusion_compiles_in_one_graph(option, make_dear, make_clip):
    model = make_dear(*FULL, **option)
    with torch.no_grad():
        outputs = model.eval()._run_branches(make_clip("rgb", "depth"))

    def fuse(outputs):
        return model.combined(model.fuse(outputs))

    torch._dynamo.reset()
    compiled = torch.compile(fuse, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(outputs), fuse(outputs))
    model.train()
    compiled(outputs).square().sum().backward()
    assert all(w.grad is not None for n, w in model.named_parameters() if n.startswith("stream"))


@pytest.mark.parametrize("option", OPTIONS, ids=option_id)
def test_half_precision_stays_close(option, make_dear, make_clip, assert_close_to_peak):
    model, clip = make_dear(*FULL, **option).eval(), make_clip("rgb", "depth")
    with torch.no_grad():
        want = model(clip)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(clip)
    assert got.isfinite().all()
    assert_close_to_peak(got.float(), want, 2e-2)


def test_stream_weights_and_gates_are_not_decayed(make_dear):
    model = make_dear(*FULL, combine="learned", gate="sigmoid")
    names = {id(weight): name for name, weight in model.named_parameters()}
    plain = [names[id(weight)] for weight in parameter_groups(model, 0.1)[1]["params"]]
    assert "stream_weights" in plain
    assert {name for name in names.values() if ".gate." in name} <= set(plain)
