import pickle

import pytest
import torch

from dear_core import presets
from dear_core.errors import InputError
from dear_core.training import checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(
        path,
        checkpoint.Checkpoint(
            config=presets.demo(),
            classes={"label": ("a", "b")},
            model={"w": torch.ones(100)},
            tower=None,
            epoch=1,
            step=2,
            figures={"top1": 0.5},
            threads=1,
        ),
    )
    return path


def test_what_is_saved_is_read_back(saved):
    state = checkpoint.read(saved)
    assert (
        state.config == presets.demo() and state.classes == {"label": ("a", "b")} and state.optimizer is None
    )
    assert torch.equal(state.model["w"], torch.ones(100)) and state.figures == {"top1": 0.5}
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_a_truncated_file(saved):
    saved.write_bytes(saved.read_bytes()[:600])
    with pytest.raises(InputError, match=r"last\.pt: not readable as a checkpoint; truncated"):
        checkpoint.read(saved)


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "bomb.pt"
    torch.save({"format": 1, "model": Bomb()}, path)
    with pytest.raises(InputError, match="or holding more than tensors"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"bomb\.pt: not readable"):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()


def test_other_files_and_no_file(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a DEAR checkpoint of format"):
        checkpoint.read(tmp_path / "other.pt")
    with pytest.raises(InputError, match="no such checkpoint; RESULTS"):
        checkpoint.read(tmp_path / "gone.pt")
