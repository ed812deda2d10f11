"""One run from config to result: found by its key, continued, and never trained twice."""

import json
import shutil

import pytest
import torch

from dear_core import build
from dear_core.errors import InputError
from dear_core.eval import evaluate_checkpoint
from dear_core.run import run
from dear_core.runs import RunFolder
from dear_core.training import checkpoint, heads, loop


class StopError(Exception):
    pass


def stop_after(epoch):
    def on_epoch(row):
        if row["epoch"] == epoch:
            raise StopError

    return on_epoch


@pytest.fixture
def config(tiny_config):
    return build.resolve(tiny_config.replace({"model.branches": ["rgb:side4video", "depth:videomamba"]}))


def test_a_finished_run_does_nothing(config, tmp_path, monkeypatch):
    rows = []
    first = run(config, tmp_path, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]
    monkeypatch.setattr(build, "job", lambda *_: pytest.fail("built a job for a finished run"))
    assert run(config, tmp_path) == first


def test_an_interrupted_run_ends_as_the_undisturbed_one(config, tmp_path):
    config = config.replace({"train.epochs": 3})
    whole = run(config, tmp_path / "whole")
    with pytest.raises(StopError):
        run(config, tmp_path / "parts", on_epoch=stop_after(1))
    assert RunFolder(tmp_path / "parts", config.key).result() is None
    seen = []
    parts = run(config, tmp_path / "parts", on_epoch=seen.append)
    assert [row["epoch"] for row in seen] == [2, 3]
    for name in ("loss", "top1", "top5", "per_class"):
        assert parts[name] == whole[name], name
    one, two = (checkpoint.read(RunFolder(tmp_path / n, config.key).last) for n in ("whole", "parts"))
    for name, value in one.model.items():
        assert torch.equal(value, two.model[name]), name
    history = RunFolder(tmp_path / "parts", config.key).history()
    assert [row["epoch"] for row in history] == [1, 2, 3]


def test_eval_gives_the_figures_of_training_to_the_digit(config, tmp_path):
    result = run(config, tmp_path)
    scores = evaluate_checkpoint(RunFolder(tmp_path, config.key).last)
    for name in ("loss", "top1", "top5", "per_class"):
        assert scores[name] == result[name], name
    assert scores["recorded"] == {name: result[name] for name in ("loss", "top1", "top5")}


@pytest.mark.slow
def test_checkpointing_trains_the_same_run_to_the_bit(config, tmp_path):
    plain = run(config, tmp_path / "plain")
    thrifty = config.replace({"train.gradient_checkpointing": True})
    assert thrifty.key == config.key
    kept = run(thrifty, tmp_path / "thrifty")
    for name in ("loss", "top1", "top5", "per_class"):
        assert kept[name] == plain[name], name


@pytest.mark.slow
def test_bf16_and_compiled_runs_train_and_are_evaluated(config, tmp_path):
    config = config.replace(
        {"train.precision": "bf16", "model.branches": ["rgb:side4video"], "train.epochs": 1}
    )
    # inductor compiles once for training and once for validation, a minute on two cores
    plain = run(config, tmp_path / "plain")
    compiled = run(config.replace({"train.compile": True}), tmp_path / "compiled")
    assert abs(compiled["loss"] - plain["loss"]) < 2e-2 * plain["loss"]
    scores = evaluate_checkpoint(RunFolder(tmp_path / "compiled", config.key).last)  # in eager mode
    assert abs(scores["loss"] - compiled["loss"]) < 2e-2 * compiled["loss"]


@pytest.mark.slow
def test_loader_processes_change_nothing(config, tmp_path):
    config = config.replace({"model.branches": ["rgb:side4video"], "train.epochs": 1, "data.repeats": 2})
    config = build.resolve(config)
    assert config.replace({"data.workers": 2}).key == config.key
    here = run(config, tmp_path / "here")
    there = run(config.replace({"data.workers": 2}), tmp_path / "there")
    assert (there["loss"], there["per_class"]) == (here["loss"], here["per_class"])


@pytest.fixture
def spoilt(tiny_config, tiny_root, tmp_path):
    """RGB alone on a copy of the tiny data set, of which one training and one validation clip is cut off."""
    root = tmp_path / "spoilt"
    shutil.copytree(tiny_root, root, ignore=shutil.ignore_patterns("frames"))
    for split, number in (("train", 4), ("validation", 2)):
        name = json.loads((root / f"{split}.json").read_text())[number]["id"]
        video = root / "videos" / f"{name}.webm"
        video.write_bytes(video.read_bytes()[:4000])
    changes = {"model.branches": ["rgb:side4video"], "data.root": str(root), "train.epochs": 2}
    return build.resolve(tiny_config.replace({**changes, "data.cache_dir": None, "train.batch_size": 5}))


@pytest.mark.parametrize("cached", [False, True])
def test_clips_that_cannot_be_read_are_left_out_counted_and_named(spoilt, tmp_path, caplog, cached):
    cache = str(tmp_path / "cache") if cached else None
    config = spoilt.replace({"data.max_bad_fraction": 0.1, "data.cache_dir": cache})
    result = run(config, tmp_path)
    folder = RunFolder(tmp_path, config.key)
    assert [row["bad_clips"] for row in folder.history()] == [2, 2]
    assert result["clips"] == 9 and result["bad_clips"] == 2
    named = {(row["split"], row["clip"]): row["reason"] for row in folder.bad_clips()}
    assert named.keys() == {("train", 4), ("validation", 2)} and len(folder.bad_clips()) == 2
    assert all(".webm: " in reason for reason in named.values())
    assert sum("left out clip 4 of the train split" in message for message in caplog.messages) == 1
    scores = evaluate_checkpoint(folder.last)
    assert scores["bad_clips"] == 1 and scores["top1"] == result["top1"] and scores["loss"] == result["loss"]


@pytest.mark.parametrize(("clips", "split"), [(0.0, "train"), (0.07, "validation")])
def test_too_many_of_them_end_the_run_with_one_sentence(spoilt, tmp_path, clips, split):
    config = spoilt.replace({"data.max_bad_fraction": clips})
    with pytest.raises(
        InputError, match=rf"1 of the \d+ clips of the {split} split cannot be read, more than"
    ):
        run(config, tmp_path)
    assert RunFolder(tmp_path, config.key).result() is None


def test_a_step_without_a_readable_clip_changes_nothing(spoilt, tmp_path):
    config = spoilt.replace({"data.max_bad_fraction": 0.5, "train.batch_size": 1, "train.epochs": 1})
    assert run(config, tmp_path)["bad_clips"] == 2
    (row,) = RunFolder(tmp_path, config.key).history()
    assert row["step"] == 20


@pytest.mark.parametrize("mixing", ["data.mixup", "data.cutmix"])
def test_mixed_batches_train(config, tmp_path, mixing):
    mixed = config.replace({mixing: 0.8, "data.repeats": 2, "train.epochs": 1})
    assert mixed.key != config.key
    assert run(mixed, tmp_path)["clips"] == 10


def test_a_split_without_labels_is_predicted_and_not_scored(config, tiny_root, tmp_path):
    run(config, tmp_path)
    path, root = RunFolder(tmp_path, config.key).last, tmp_path / "moved"
    shutil.copytree(tiny_root, root, ignore=shutil.ignore_patterns("frames"))
    with pytest.raises(InputError, match="has no test split; it has train, validation"):
        evaluate_checkpoint(path, str(root), split="test")
    entries = json.loads((root / "validation.json").read_text())
    (root / "test.json").write_text(json.dumps([{"id": entry["id"]} for entry in entries]))
    build.manifest.cache_clear()
    with pytest.raises(
        InputError, match="--split test: has no labels, so it cannot be scored; give --predict"
    ):
        evaluate_checkpoint(path, str(root), split="test")
    told = evaluate_checkpoint(path, str(root), split="test", predictions=tmp_path / "test.jsonl")
    assert told["clips"] == 10 and "top1" not in told and "per_class" not in told
    evaluate_checkpoint(path, predictions=tmp_path / "validation.jsonl")
    test, labelled = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("test", "validation")
    )
    assert [row["clip"] for row in test] == [entry["id"] for entry in entries]
    assert all("label" not in row for row in test) and all("label" in row for row in labelled)
    # the moved data set is read from its files, the other from its cache, so figures differ a little
    best = [a["top5"]["label"][0][0] == b["top5"]["label"][0][0] for a, b in zip(test, labelled, strict=True)]
    assert sum(best) >= 8


def test_more_views_are_more_votes(config, tmp_path):
    run(config, tmp_path)
    path = RunFolder(tmp_path, config.key).last
    scores = evaluate_checkpoint(path, clips=2, crops=3)
    assert scores["views"] == 6 and scores["clips"] == 10 and scores["key"] == config.key
    assert scores["loss"] != scores["recorded"]["loss"]


def test_a_checkpoint_has_no_frozen_weights_and_no_state_for_them(config, tmp_path):
    run(config, tmp_path)
    saved = checkpoint.read(RunFolder(tmp_path, config.key).last)
    network = build.model(config, 10)
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert not [name for name in saved.model if name.startswith("tower.")]
    assert len(saved.optimizer["state"]) == len(trainable)
    assert saved.tower is not None and saved.config == config
    frozen = sum(p.nbytes for p in network.tower.parameters())
    assert frozen > 0 and not any(p.requires_grad for p in network.tower.parameters())
    own = sum(tensor.nbytes for tensor in saved.model.values())
    moments = 2 * sum(p.nbytes for p in trainable)  # AdamW's two
    names = frozen // 2  # room for keys, config and headers, which a tower would not fit into
    assert own < RunFolder(tmp_path, config.key).best.stat().st_size < own + names
    assert own + moments < RunFolder(tmp_path, config.key).last.stat().st_size < own + moments + names


def test_the_result_says_what_the_table_needs(config, tmp_path):
    result = run(config, tmp_path)
    assert result["row"] == "RGB+Depth(VideoMamba)" and result["clips"] == 10
    assert result["parameters"] > result["trainable_parameters"] > 100_000
    assert 0.2 < result["gflops"] < 0.4 and result["seconds"] > 0
    assert len(result["per_class"]) == 10
    assert json.loads(json.dumps(result)) == result


def test_a_loss_that_is_not_finite_stops_before_the_update(config, tmp_path, monkeypatch):
    real, calls = heads.F.cross_entropy, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(heads.F, "cross_entropy", poisoned)
    with pytest.raises(loop.NotFiniteError, match=r"not finite at step 1 \(epoch 1\)"):
        run(config, tmp_path)
    assert not RunFolder(tmp_path, config.key).last.exists()


def test_another_data_set_than_the_configs_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"data\.identity: the config was made for data 0123"):
        build.resolve(config.replace({"data.identity": "0123"}))


def test_a_depth_store_of_another_model_or_height_is_refused_by_both_names(config):
    changes = {"data.depth_store.model": "Intel/dpt-large", "data.depth_store.height": 240}
    words = (
        r"data\.depth_store: the depth store \S+ was made with model synthetic, height 120; the config names "
    )
    with pytest.raises(InputError, match=words + "model Intel/dpt-large, height 240"):
        build.resolve(config.replace(changes))
    assert config.data.depth_store.model == "synthetic"
    rgb = config.replace({**changes, "model.branches": ["rgb:side4video"]})
    assert build.resolve(rgb).key == rgb.key  # who reads no depth does not care


def test_missing_depth_is_refused_only_where_it_is_read(config, tmp_path):
    with pytest.raises(InputError, match=r"data\.depth_root: "):
        build.resolve(config.replace({"data.identity": None, "data.depth_root": str(tmp_path)}))
    rgb = config.replace({"data.identity": None, "model.branches": ["rgb:side4video"]})
    assert build.resolve(rgb.replace({"data.depth_root": str(tmp_path)})).key == build.resolve(rgb).key
