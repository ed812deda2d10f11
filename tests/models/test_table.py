"""`python -m dear_core.models`: what the rows cost, as a table and as JSON."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from dear_core.errors import InputError
from dear_core.models import __main__ as table

FIELDS = ("parameters", "trainable_parameters", "gflops", "step_gflops")


def options(*words, **fields):
    return table.Options(**{"preset": "demo", "classes": 4, "set": (words,), **fields})


def printed(chosen, width):
    configs = table.configs(chosen)
    rows = [table.measure(config, chosen.classes) for config in configs]
    file = io.StringIO()
    table.show(Console(file=file, width=width), configs[0], rows, title=chosen.preset)
    return file.getvalue()


@pytest.fixture(scope="module")
def paper():
    chosen = table.Options()
    return [table.measure(config, chosen.classes) for config in table.configs(chosen)]


@pytest.mark.slow
@pytest.mark.slow
def test_the_papers_rows_in_full_size(paper):
    assert [row.row for row in paper] == [
        "RGB",
        "RGB+Depth(VideoMamba)",
        "RGB+Depth",
        "RGB+Depth+Depth(VideoMamba)",
    ]
    trained = [round(row.total.trainable_parameters / 1e6, 1) for row in paper]
    assert trained == [21.1, 47.6, 43.1, 69.6]
    assert [round(row.total.gflops) for row in paper] == [351, 437, 703, 789]


@pytest.mark.slow
def test_the_parts_add_up_to_the_whole(paper):
    for row in paper:
        for name in FIELDS:
            parts = sum(getattr(part, name) for part in row.parts.values())
            assert parts == pytest.approx(getattr(row.total, name), rel=1e-9)
        tower = row.parts["tower"]
        assert tower.trainable_parameters == 0 and tower.step_gflops == tower.gflops
    one, two = paper[0].parts["tower"], paper[2].parts["tower"]  # it runs on RGB, then on depth too
    assert (two.gflops, two.parameters) == (pytest.approx(2 * one.gflops), one.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("width", [100, 80])
def test_the_table_is_whole_at_usual_widths(width, paper):
    file = io.StringIO()
    config = table.configs(table.Options())[0]
    table.show(Console(file=file, width=width), config, paper, title="ssv2_vitb16")
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in file.getvalue()
    for label in ("RGB+Depth+Depth(VideoMamba)", "fusion with depth:videomamba", "a step"):
        assert any(label in line for line in lines)
    assert "2 operations a multiply-add, one clip of 8 frames" in file.getvalue()


def test_a_narrow_screen_folds_names_and_keeps_figures():
    text = printed(options("model.branches=[rgb:side4video,depth:videomamba]"), 60)
    assert "…" not in text and "100.0" in text
    assert "RGB+Depth(VideoMamba)" in "".join(line[:13].strip() for line in text.splitlines())


def test_a_choice_of_branches_is_the_one_row():
    rows = [table.measure(c, 4) for c in table.configs(options("model.branches=[depth:videomamba]"))]
    assert [row.row for row in rows] == ["Depth(VideoMamba)"]
    assert set(rows[0].parts) == {"branches.depth:videomamba", "streams.depth:videomamba"}


def test_what_belongs_to_no_part_is_shown_as_the_rest():
    (config,) = table.configs(
        options(
            "model.branches=[rgb:side4video,depth:side4video,depth:videomamba]",
            "model.fusion.combine=learned",
        )
    )
    rest = table.measure(config, 4).parts["rest"]
    assert (rest.trainable_parameters, rest.step_gflops) == (2, 0)  # a weight for each stream


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"preset": "ssv2"}, "--preset ssv2: no such preset"),
        ({"set": (("train.epoch=3",),)}, "train.epoch: no such key; did you mean train.epochs?"),
        ({"classes": 0}, "--classes 0: should be at least 1"),
        ({"set": (("model.tower.name=RN50",),)}, "model.tower: the tower 'RN50' is a ModifiedResNet"),
    ],
)
def test_a_wrong_option_is_one_sentence(fields, sentence):
    chosen = options(**fields)
    with pytest.raises(InputError) as caught:
        table.measure(table.configs(chosen)[0], 4)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def run(*words):
    command = [sys.executable, "-m", "dear_core.models", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_json_is_one_object():
    done = run("--preset", "demo", "--classes", "4", "--json")
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    assert (report["preset"], report["classes"], report["operations_per_multiply_add"]) == ("demo", 4, 2)
    assert len(report["rows"]) == 4 and report["rows"][0]["row"] == "RGB"
    assert set(report["rows"][0]["parts"]["tower"]) == set(FIELDS)


@pytest.mark.slow
def test_a_misspelt_key_ends_with_code_2():
    done = run("--set", "train.epoch=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: train.epoch: no such key; did you mean train.epochs?\n"
