"""The whole model: the paper's rows, the frozen tower, and what its state holds."""

import pytest
import torch
from torch import nn

from dear_core.models import DEAR

ROWS = [
    ("rgb:side4video",),
    ("rgb:side4video", "depth:videomamba"),
    ("rgb:side4video", "depth:side4video"),
    ("rgb:side4video", "depth:side4video", "depth:videomamba"),
]


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


@pytest.mark.parametrize("row", ROWS, ids="+".join)
def test_the_tower_gets_no_gradient_and_all_else_does(row, make_dear, make_clip):
    model = make_dear(*row, tokens="patch")
    model(make_clip(*modalities(row))).square().sum().backward()
    for name, weight in model.named_parameters():
        if name.startswith("tower."):
            assert weight.grad is None
        else:
            assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("row", ROWS, ids="+".join)
def test_the_tower_runs_once_a_batch(row, make_dear, make_clip):
    model = make_dear(*row)
    model(make_clip(*modalities(row)))
    assert model.tower.forward_count == 1


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


def test_mean_of_probabilities(make_dear, make_clip):
    model, clip = make_dear(*ROWS[3], combine="mean_prob").eval(), make_clip("rgb", "depth")
    streams = torch.stack(list(model.stream_logits(clip).values()))
    torch.testing.assert_close(model(clip).exp(), streams.softmax(-1).mean(0))


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
        build({"rgb:side4video": make_side()}, combine="max")
    tower.width = 65
    with pytest.raises(ValueError, match="width=64"):
        build({"rgb:side4video": make_side()})
    with pytest.raises(ValueError, match="heads=5 must divide"):
        tower.width = 64
        make_dear(*ROWS[1], heads=5)
