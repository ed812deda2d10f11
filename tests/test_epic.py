"""EPIC-KITCHENS-100 in small: frame folders, verbs and nouns, trained and evaluated by both heads."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from dear_core import build, presets
from dear_core.eval import evaluate_checkpoint
from dear_core.run import run
from dear_core.runs import RunFolder

VERBS, NOUNS = ("take", "put", "wash"), ("plate", "cup")
COLUMNS = [
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
]  # fmt: skip


@pytest.fixture(scope="module")
def epic_root(tmp_path_factory):
    """Two videos of 120 frames, 20 actions of 10 frames in each: one video trains, the other validates."""
    root = tmp_path_factory.mktemp("epic")
    rng = np.random.default_rng(0)
    for video, split in (("P01_01", "train"), ("P02_01", "validation")):
        person = video[:3]
        folder = root / person / "rgb_frames" / video
        folder.mkdir(parents=True)
        for number in range(1, 121):
            grey = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(grey).resize((96, 72)).save(folder / f"frame_{number:010d}.jpg")
        with (root / f"EPIC_100_{split}.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            for number in range(20):
                verb, noun = number % 3, number % 2
                start = 1 + 5 * number
                rows.writerow(
                    {
                        "narration_id": f"{video}_{number}", "participant_id": person, "video_id": video,
                        "narration_timestamp": "00:00:00.00", "start_timestamp": "00:00:00.00",
                        "stop_timestamp": "00:00:01.00", "start_frame": start, "stop_frame": start + 9,
                        "narration": "", "verb": VERBS[verb], "verb_class": verb, "noun": NOUNS[noun],
                        "noun_class": noun, "all_nouns": "[]", "all_noun_classes": "[]",
                    }
                )  # fmt: skip
    for kind, names in (("verb", VERBS), ("noun", NOUNS)):
        lines = ["id,key,instances,category"] + [f"{n},{name},[],x" for n, name in enumerate(names)]
        (root / f"EPIC_100_{kind}_classes.csv").write_text("\n".join(lines) + "\n")
    return root


def config(root, task):
    changes = {
        "data.format": "epic", "data.root": str(root), "data.task": task, "data.cache_dir": None,
        "data.depth": "constant", "model.branches": ["rgb:videomamba", "depth:videomamba"],
        "model.videomamba.depth": 1, "train.epochs": 1, "train.batch_size": 8,
    }  # fmt: skip
    return build.resolve(presets.demo().replace(changes))


def test_an_action_is_trained_and_scored_from_both_heads(epic_root, tmp_path):
    action = config(epic_root, "action")
    result = run(action, tmp_path)
    assert result["clips"] == 20 and {"verb_top1", "noun_top5", "top1"} <= result.keys()
    assert result["top1"] <= min(result["verb_top1"], result["noun_top1"])
    assert list(result["per_class"]) == [f"verb: {v}" for v in VERBS] + [f"noun: {n}" for n in NOUNS]
    (row,) = RunFolder(tmp_path, action.key).history()
    assert row["validation/verb_top1"] == result["verb_top1"]
    written = tmp_path / "predictions.jsonl"
    scores = evaluate_checkpoint(RunFolder(tmp_path, action.key).last, predictions=written)
    assert {name: scores[name] for name in scores["recorded"]} == scores["recorded"]
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    right = [all(line["top5"][h][0][0] == line["label"][h] for h in ("verb", "noun")) for line in lines]
    assert len(lines) == 20 and sum(right) / 20 == result["top1"]


def test_a_verb_alone_is_another_run_with_one_head(epic_root, tmp_path):
    verb = config(epic_root, "verb")
    assert verb.key != config(epic_root, "action").key
    result = run(verb, tmp_path)
    assert tuple(result["per_class"]) == VERBS and "verb_top1" not in result
