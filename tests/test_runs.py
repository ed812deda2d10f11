import pytest

from dear_core import presets
from dear_core.errors import InputError
from dear_core.runs import RunFolder, make_folder


def test_a_folder_is_found_by_its_key(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    folder.create(presets.demo())
    assert folder.result() is None and folder.history() == []
    folder.append({"epoch": 1, "loss": 2.0})
    folder.append({"epoch": 2, "loss": 1.0})
    folder.finish({"top1": 0.5})
    again = RunFolder(tmp_path, "abc")
    assert again.result() == {"top1": 0.5}
    assert [row["loss"] for row in again.history()] == [2.0, 1.0]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    folder.create(presets.demo())
    folder.append({"epoch": 1})
    with folder.metrics.open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert folder.history() == [{"epoch": 1}]


def test_rows_without_a_checkpoint_are_forgotten(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    folder.create(presets.demo())
    for epoch in (1, 2, 3):
        folder.append({"epoch": epoch})
    folder.keep_epochs(2)
    assert folder.history() == [{"epoch": 1}, {"epoch": 2}]


def test_setting_aside_deletes_nothing(tmp_path):
    folder = RunFolder(tmp_path, "abc")
    assert folder.set_aside() is None
    folder.create(presets.demo())
    folder.finish({"top1": 0.5})
    away = folder.set_aside()
    assert RunFolder(tmp_path, "abc").result() is None
    assert (away / "result.json").is_file()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"results cannot be written there .* choose another folder with"):
        make_folder(tmp_path / "file" / "results")
