import pytest

from dear_core.errors import InputError
from ray_jobs import search

FILE = '''"""Does the gate matter?

More words.
"""
from dear_core.presets import demo as base
METRIC, MODE = "validation/top1", "max"
def space(trial):
    gate = trial.suggest_categorical("gate", ["tanh", "none"])
    return {"model.fusion.gate": gate}
'''


def test_the_papers_rows_are_four_arms_in_the_papers_order():
    sweep = search.load("branches")
    arms = search.arms(sweep.space)
    assert [arm.name for arm in arms] == [
        "RGB",
        "RGB+Depth(VideoMamba)",
        "RGB+Depth",
        "RGB+Depth+Depth(VideoMamba)",
    ]
    for arm in arms:
        assert sweep.base().replace(arm.values).model.row == arm.name
    assert sweep.baseline in {arm.name for arm in arms}


def test_a_conditional_space_is_enumerated_each_arm_once():
    def space(trial):
        gate = trial.suggest_categorical("gate", ["tanh", "none"])
        values = {"model.fusion.gate": gate}
        if gate == "tanh":
            values["model.fusion.layers"] = trial.suggest_int("layers", 1, 3)
        values["train.lr"] = trial.suggest_float("lr", 0.1, 0.3, step=0.1)
        return values

    arms = search.arms(space)
    points = [tuple(arm.point.items()) for arm in arms]
    assert len(points) == len(set(points)) == 2 * 3 * 3 - 2 * 3
    assert {len(arm.point) for arm in arms} == {2, 3}
    assert arms[0].name == "gate=tanh, layers=1, lr=0.1"


def test_what_cannot_be_enumerated_says_so():
    with pytest.raises(InputError, match="lr: a continuous range cannot be enumerated"):
        search.arms(lambda trial: {"train.lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True)})
    with pytest.raises(InputError, match="more than 100 arms"):
        search.arms(lambda trial: {"train.seed": trial.suggest_int("seed", 0, 999)}, most=100)


def test_a_users_own_file(tmp_path):
    path = tmp_path / "gates.py"
    path.write_text(FILE)
    sweep = search.load(str(path))
    assert (sweep.name, sweep.question, sweep.baseline) == ("gates", "Does the gate matter?", None)
    assert [arm.values for arm in search.arms(sweep.space)] == [
        {"model.fusion.gate": "tanh"},
        {"model.fusion.gate": "none"},
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file"),
        ("x = (", "line 1 is no valid Python"),
        ("x = 1", "the file lacks base, space, METRIC, MODE"),
        (FILE.replace('"max"', '"most"'), "MODE is 'most'; it should be 'max' or 'min'"),
    ],
)
def test_a_file_that_is_no_sweep(tmp_path, content, sentence):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        search.load(str(path))
    with pytest.raises(InputError, match="no such sweep; known are branches"):
        search.load("brunches")
