"""The same numbers in every way of running: compiled, checkpointed, in bf16."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dear_core.models import ChannelLastBatchNorm, Side4Video, VideoMamba

ALL = ("rgb:side4video", "depth:side4video", "depth:videomamba")
LABELS = torch.tensor([1, 3])


def step(model, clip):
    """Loss and gradients by name of one training step."""
    model.zero_grad()
    loss = F.cross_entropy(model(clip).float(), LABELS)
    loss.backward()
    gradients = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    return loss.detach(), gradients


def distance(got, want):
    """The length of the difference of two sets of gradients, over the length of the second."""
    assert got.keys() == want.keys()
    difference = sum((got[name] - right).double().square().sum() for name, right in want.items())
    return (difference / sum(right.double().square().sum() for right in want.values())).sqrt().item()


def statistics(model):
    norms = [module for module in model.modules() if isinstance(module, ChannelLastBatchNorm)]
    return [
        value for norm in norms for value in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    ]


def checkpointed(model):
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = True
    return other


@pytest.mark.parametrize(
    ("row", "backend"), [(ALL[:1], "aot_eager"), ((ALL[0], ALL[2]), "aot_eager"), (ALL, "eager")], ids=str
)
@pytest.mark.slow
def test_rows_compile_without_a_break(row, backend, make_dear, make_clip):
    torch.compiler.reset()
    model, clip = make_dear(*row), make_clip(*dict.fromkeys(key.split(":")[0] for key in row))
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True, backend=backend)
    (want_loss, want), (loss, got) = step(model, clip), step(compiled, clip)
    torch.testing.assert_close(loss, want_loss)
    assert distance(got, want) < 1e-5
    assert all(map(torch.equal, statistics(compiled), statistics(model)))


@pytest.mark.slow
def test_the_side_network_compiles_to_machine_code(make_dear, make_clip):
    torch.compiler.reset()
    model, clip = make_dear(ALL[0]), make_clip("rgb")
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True)
    (want_loss, want), (loss, got) = step(model, clip), step(compiled, clip)
    torch.testing.assert_close(loss, want_loss)
    assert distance(got, want) < 1e-4


@pytest.mark.parametrize("mode", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_checkpointing_changes_memory_and_nothing_else(mode, make_dear, make_clip):
    torch.compiler.reset()
    model, clip = make_dear(*ALL), make_clip("rgb", "depth")
    other = checkpointed(model)
    if mode == "compiled":
        other.compile(fullgraph=True, backend="eager")
    (want_loss, want), (loss, got) = step(model, clip), step(other, clip)
    assert torch.equal(loss, want_loss)
    assert all(torch.equal(got[name], right) for name, right in want.items())
    assert all(map(torch.equal, statistics(other), statistics(model))), "a batch must count once"


def test_checkpointing_keeps_less(make_dear, make_clip):
    model, clip = make_dear(*ALL), make_clip("rgb", "depth")

    def kept(network):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x,
            lambda x: x,
        ):
            network(clip)
        return sum(sizes.values())

    assert kept(checkpointed(model)) < 0.5 * kept(model)


def test_checkpointing_draws_the_same_dropped_paths():
    torch.manual_seed(0)
    make = {"image_size": 24, "patch_size": 8, "num_frames": 3, "embed_dim": 32, "depth": 4, "drop_path": 0.5}
    plain = VideoMamba(**make)
    other = checkpointed(plain)
    video, gradients = torch.randn(4, 3, 3, 24, 24), []
    for model in (plain, other):
        torch.manual_seed(7)
        model(video)[1].square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("row", [ALL[:1], (ALL[0], ALL[2]), ALL], ids=str)
def test_bf16_stays_near_fp32(row, make_dear, make_clip):
    """The loss and the whole gradient, tower in bf16 as well: within 2e-2 of fp32."""
    model, clip = make_dear(*row), make_clip(*dict.fromkeys(key.split(":")[0] for key in row))
    low = copy.deepcopy(model)
    low.tower.to(torch.bfloat16)
    want_loss, want = step(model, clip)
    with torch.autocast("cpu", torch.bfloat16):
        loss, got = step(low, clip)
    assert abs(loss - want_loss) < 2e-2 * want_loss
    assert distance(got, want) < 2e-2
    assert {gradient.dtype for gradient in got.values()} == {torch.float32}


def test_the_towers_weights_are_in_memory_once(make_dear):
    model = make_dear("rgb:side4video", "depth:side4video", "thermal:side4video")
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    assert sum(w.numel() for w in frozen) == sum(w.numel() for w in model.tower.parameters())
    for branch in model.branches.values():
        assert isinstance(branch, Side4Video)
        assert not any(module is model.tower for module in branch.modules())
