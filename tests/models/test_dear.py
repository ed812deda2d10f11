"""The whole model: the paper's rows, the frozen tower, and what its state holds."""

import pytest
import torch
from torch import nn

from dear_core import build, presets
from dear_core.config import FusionConfig
from dear_core.models import DEAR, count

ROWS = [
    ("rgb:side4video",),
    ("rgb:side4video", "depth:videomamba"),
    ("rgb:side4video", "depth:side4video"),
    ("rgb:side4video", "depth:side4video", "depth:videomamba"),
]
OTHERS = [  # any modality with any encoder, in any order
    ("depth:videomamba",),
    ("rgb:side4video", "rgb:videomamba"),
    ("rgb:videomamba", "depth:videomamba"),
    ("depth:side4video", "rgb:side4video"),
    ("depth:side4video", "rgb:videomamba", "depth:videomamba"),
]
KINDS = ["cross_attention", "concat", "sum", "scores"]


def modalities(row):
    return dict.fromkeys(key.split(":")[0] for key in row)


@pytest.mark.parametrize("row", ROWS, ids="+".join)
@pytest.mark.parametrize("tokens", ["frame", "patch"])
def test_the_papers_rows(row, tokens, make_dear, make_clip):
    model = make_dear(*row, tokens=tokens)
    clip = make_clip(*modalities(row))
    assert model(clip).shape == (2, 5)
    streams = model.eval().stream_logits(clip)
    assert list(streams) == [f"{row[0]}+{key}" for key in row[1:]] or list(streams) == [row[0]]
    torch.testing.assert_close(model(clip), torch.stack(list(streams.values())).mean(0))


@pytest.mark.parametrize("row", [*OTHERS, ROWS[3]], ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_any_branches_with_any_kind_of_fusion(row, kind, make_dear, make_clip):
    """Forward, backward to every weight, names of the streams."""
    model, clip = make_dear(*row, kind=kind, combine="learned"), make_clip(*modalities(row))
    streams = model.stream_logits(clip)
    pairs = [f"{row[0]}+{key}" for key in row[1:]]
    assert list(streams) == (list(row) if kind == "scores" or not pairs else pairs)
    assert list(streams) == list(model.streams)
    assert {logits.shape for logits in streams.values()} == {(2, 5)}
    model(clip).square().sum().backward()
    for name, weight in model.named_parameters():
        if not name.startswith("tower."):
            assert weight.grad is not None, name
            # The class token comes first, so the last block's forward state is zero when it is read.
            assert weight.grad.abs().max() > 0 or name.endswith("videomamba.layers.1.mixer.A_log"), name


@pytest.mark.parametrize("row", ROWS, ids="+".join)
def test_the_tower_gets_no_gradient_and_all_else_does(row, make_dear, make_clip):
    model = make_dear(*row, tokens="patch")
    model(make_clip(*modalities(row))).square().sum().backward()
    for name, weight in model.named_parameters():
        if name.startswith("tower."):
            assert weight.grad is None
        else:
            assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("row", ROWS + OTHERS, ids="+".join)
def test_the_tower_runs_once_a_batch_where_a_branch_reads_it(row, make_dear, make_clip):
    model, calls = make_dear(*row), []
    model.tower.register_forward_pre_hook(lambda _tower, _frames: calls.append(1))
    model(make_clip(*modalities(row)))
    assert len(calls) == any(key.endswith("side4video") for key in row)


def test_joint_taps_equal_those_of_each_modality(make_dear, make_clip):
    model = make_dear(*ROWS[2]).eval()
    clip = make_clip("rgb", "depth")
    taps = model._taps(clip)
    frames = clip["depth"].expand(-1, 3, -1, -1, -1).transpose(1, 2).flatten(0, 1)
    for got, want in zip(taps["depth"], model.tower(frames), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("removed", ROWS[3])
def test_every_branch_changes_the_scores(removed, make_dear, make_clip):
    model, clip = make_dear(*ROWS[3]).eval(), make_clip("rgb", "depth")
    base = model(clip)

    def zeros(_module, _inputs, output):
        if isinstance(output, tuple):
            return tuple(map(torch.zeros_like, output))
        return torch.zeros_like(output)

    model.branches[removed].register_forward_hook(zeros)
    assert (model(clip) - base).abs().max() > 1e-3


def test_a_depth_map_of_one_channel_counts_as_three_equal_ones(make_dear, make_clip):
    model, clip = make_dear(*ROWS[3]).eval(), make_clip("rgb", "depth")
    three = clip | {"depth": clip["depth"].repeat(1, 3, 1, 1, 1)}
    torch.testing.assert_close(model(clip), model(three))


def test_clips_do_not_see_each_other_in_eval_mode(make_dear, make_clip):
    model, clip = make_dear(*ROWS[3]).eval(), make_clip("rgb", "depth", batch=3)
    alone = model({name: video[1:2] for name, video in clip.items()})
    torch.testing.assert_close(model(clip)[1:2], alone, atol=1e-5, rtol=1e-4)


def streams_by_hand(model, clip):
    """Every stream's scores from what each branch gave, without DEAR's own fusion."""
    outputs = model._run_branches(clip)
    pooled = {key: patches.mean((1, 2)) if cls is None else cls for key, (cls, patches) in outputs.items()}
    tokens = {}
    for key, (cls, patches) in outputs.items():
        seen = patches.mean(2) if model.tokens == "frame" else patches.reshape(len(patches), -1, 64)
        tokens[key] = seen if cls is None else torch.cat([cls[:, None], seen], dim=1)
    if model.kind == "scores":
        return {key: model.streams[key].fc(pooled[key]) for key in outputs}
    seen = tokens if model.kind == "cross_attention" else pooled
    first = next(iter(outputs))
    return {
        f"{first}+{key}": model.streams[f"{first}+{key}"](seen[first], seen[key]) for key in list(outputs)[1:]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_streams_equal_a_computation_by_hand(kind, make_dear, make_clip):
    model, clip = make_dear(*ROWS[3], kind=kind).eval(), make_clip("rgb", "depth")
    streams = model.stream_logits(clip)
    want = streams_by_hand(model, clip)
    assert list(streams) == list(want)
    for name, logits in want.items():
        torch.testing.assert_close(streams[name], logits)
    torch.testing.assert_close(model(clip), sum(want.values()) / len(want))


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_every_stream_is_counted(kind, make_dear):
    model = make_dear(*ROWS[3], kind=kind)
    parts = count(model, {"rgb": (3, 3, 24, 24), "depth": (1, 3, 24, 24)}).by_part
    assert all(parts[f"streams.{name}"] > 0 for name in model.streams)


def test_every_key_of_the_config_reaches_the_model():
    """Of two configs that differ in one value, the models differ, in their weights or their scores."""
    other = {
        "kind": "sum", "gate": "none", "gate_init": 0.1, "mlp_ratio": 1.0, "tokens": "patch", "layers": 2,
        "heads": 1, "direction": "first_to_other", "combine": "max", "dropout": 0.9,
    }  # fmt: skip
    assert set(other) == set(FusionConfig.model_fields)
    base = presets.demo().replace({"data.num_frames": 2})
    generator = torch.Generator().manual_seed(0)
    clip = {m: torch.randn(2, 3, 2, 64, 64, generator=generator) for m in ("rgb", "depth")}

    def scores(changes):
        model = build.model(base.replace({f"model.fusion.{k}": v for k, v in changes.items()}), 10)
        torch.manual_seed(0)
        return model(clip)

    usual = scores({})
    assert torch.equal(scores({}), usual)
    for key, value in other.items():
        assert not torch.equal(scores({key: value}), usual), key


def test_trainable_state_leaves_the_tower_out_and_comes_back(make_dear, make_clip):
    model, clip = make_dear(*ROWS[3]).eval(), make_clip("rgb", "depth")
    state = model.trainable_state()
    assert state and not any(key.startswith("tower.") for key in state)
    want = model(clip)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 if weight.requires_grad else 0.0)
    assert not torch.allclose(model(clip), want)
    model.load_trainable_state(state)
    assert torch.equal(model(clip), want)


def test_a_state_that_does_not_fit_is_refused_whole(make_dear):
    model = make_dear(*ROWS[1])
    before = model.trainable_state()
    state = {key: value + 1 for key, value in before.items()}
    lost = state.pop("streams.rgb:side4video+depth:videomamba.head.bias")
    with pytest.raises(ValueError, match=r"missing: .*head\.bias \(1\)"):
        model.load_trainable_state(state)
    state |= {"streams.rgb:side4video+depth:videomamba.head.bias": lost[:-1], "stray": lost}
    with pytest.raises(ValueError, match=r"unexpected: stray.*of another shape: .*\[4\] for \[5\]"):
        model.load_trainable_state(state)
    for key, value in model.trainable_state().items():
        assert torch.equal(value, before[key]), key


def test_modalities_must_match(make_dear, make_clip):
    model = make_dear(*ROWS[1])
    with pytest.raises(ValueError, match="read the modalities"):
        model(make_clip("rgb"))
    with pytest.raises(ValueError, match="read the modalities"):
        model(make_clip("rgb", "depth") | {"flow": torch.zeros(1)})


def test_bad_branches_are_refused(tower, make_side, make_dear):
    def build(branches, tower=tower, **options):
        return DEAR(tower=tower, branches=branches, num_classes=5, **options)

    with pytest.raises(ValueError, match="branches is empty"):
        build({})
    with pytest.raises(ValueError, match="modality:name"):
        build({"rgb": make_side()})
    with pytest.raises(ValueError, match="is a Linear"):
        build({"rgb:linear": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="needs a tower"):
        build({"rgb:side4video": make_side()}, tower=None)
    with pytest.raises(ValueError, match="tokens="):
        build({"rgb:side4video": make_side()}, tokens="pixel")
    with pytest.raises(ValueError, match="combine="):
        build({"rgb:side4video": make_side()}, combine="min")
    with pytest.raises(
        ValueError, match="kind='product' must be one of cross_attention, concat, sum, scores"
    ):
        build({"rgb:side4video": make_side()}, kind="product")
    tower.width = 65
    with pytest.raises(ValueError, match="width=64"):
        build({"rgb:side4video": make_side()})
    tower.width = 64
    wanted = r"fusion\.heads=5 must divide .*\(64, 32\) \(stream rgb:side4video\+depth:videomamba\)"
    with pytest.raises(ValueError, match=wanted):
        make_dear(*ROWS[1], heads=5)
    make_dear(*ROWS[1], heads=5, kind="concat")  # reads no heads
