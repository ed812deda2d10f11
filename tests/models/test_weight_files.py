"""Files that people have are read; files that are damaged or hold code are refused in one sentence."""

import argparse
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dear_core.models.torchscript_archive import is_archive
from dear_core.models.weight_files import WeightsError, fingerprint, read_state

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


class Evil:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class Half(nn.Module):
    """Nested modules, a list attribute, a shared weight and a buffer, to be scripted."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), nn.ReLU(), nn.Linear(3, 3))
        self.again = self.visual[0]
        self.sizes = [1, 2]
        self.register_buffer("input_resolution", torch.tensor(24))

    def forward(self, x):
        return self.visual(x)


def same(state, want):
    assert state.keys() == want.keys()
    for key, value in want.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors"])
def test_every_form_gives_its_tensors(tmp_path, name):
    path = tmp_path / name
    save_file(TENSORS, path) if path.suffix == ".safetensors" else torch.save(TENSORS, path)
    same(read_state(path), TENSORS)


def test_the_old_unzipped_form_is_read(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    same(read_state(str(tmp_path / "w.pth"))["model"], TENSORS)


def test_arguments_and_numpy_numbers_beside_the_tensors_are_read(tmp_path):
    """What VideoMamba's trainer saves: the run's arguments and figures beside the model."""
    args = argparse.Namespace(lr=1e-3, model="videomamba_small", seed=np.int64(4), best=np.float32(0.5))
    saved = {"model": TENSORS, "args": args, "max_accuracy": np.float64(81.25), "done": np.bool_(True)}
    for zipped in (True, False):
        torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        state = read_state(tmp_path / "w.pth")
        same(state["model"], TENSORS)
        assert (state["args"], state["max_accuracy"], state["done"]) == (args, 81.25, True)


def test_a_number_of_the_first_numpy_is_read(tmp_path):
    torch.save({"model": TENSORS, "best": np.float64(0.25)}, tmp_path / "w.pth", pickle_protocol=2)
    whole = (tmp_path / "w.pth").read_bytes()
    torch.save(
        {"model": TENSORS, "best": np.float64(0.25)},
        tmp_path / "old.pth",
        _use_new_zipfile_serialization=False,
    )
    old = (tmp_path / "old.pth").read_bytes()
    assert b"numpy._core.multiarray" in whole and b"numpy._core.multiarray" in old
    (tmp_path / "old.pth").write_bytes(old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_state(tmp_path / "old.pth")["best"] == 0.25


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped, nested):
    trace = tmp_path / "trace"
    evil = argparse.Namespace(inner=Evil(trace)) if nested else Evil(trace)
    torch.save({"model": TENSORS, "args": evil}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"w.pt: holds more than tensors; reading posix.mkdir from it"):
        read_state(tmp_path / "w.pt")
    assert not trace.exists()


def test_damaged_files_are_one_sentence(tmp_path):
    torch.save(TENSORS, tmp_path / "zip.pt")
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(TENSORS, tmp_path / "safe.safetensors")
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "text.pt").write_text("<html>404</html>\n" * 9)
    (tmp_path / "none.pt").write_bytes(b"")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    sentences = {
        "zip.pt": "is cut short",
        "old.pt": "is cut short",
        "safe.safetensors": "is no whole safetensors file",
        "text.pt": "is no weights file, or is damaged",
        "none.pt": "is empty",
        "list.pt": "holds a list, not tensors by name",
        "nothing.pt": "holds nothing",
        "absent.pt": "no such file",
    }
    for name, sentence in sentences.items():
        with pytest.raises(WeightsError, match=f"{name}: {sentence}") as caught:
            read_state(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_gives_its_state_dict(tmp_path):
    path = tmp_path / "archive.pt"
    torch.jit.script(Half().half()).save(path)
    want = torch.jit.load(path).state_dict()
    assert want["visual.0.weight"].dtype == torch.float16
    same(read_state(path), want)
    torch.save(TENSORS, tmp_path / "plain.pt")
    assert is_archive(path) and not is_archive(tmp_path / "plain.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_nothing_in_a_torchscript_archive_is_run(tmp_path):
    """An attribute that unpickles to a call, as a doctored archive may have, stays an inert object."""
    import pickle
    import zipfile

    torch.jit.script(Half()).save(tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith("/data.pkl"):
                data = pickle.dumps({"a": Evil(tmp_path / "trace")})
            bad.writestr(name, data)
    with pytest.raises(WeightsError, match="no weights file, or is damaged"):
        read_state(tmp_path / "bad.pt")
    assert not (tmp_path / "trace").exists()


def test_a_fingerprint_is_of_the_content(tmp_path):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert fingerprint(one) == fingerprint(str(two))
    assert len(fingerprint(one)) == 16
    before = fingerprint(two)
    two.write_bytes(b"Weights and more")
    assert fingerprint(two) != before
    with pytest.raises(WeightsError, match=r"gone.pt: no such file"):
        fingerprint(tmp_path / "gone.pt")
