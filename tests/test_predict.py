"""Labels of one video: the same as validation gives it, and one sentence for what is no video."""

import json
import subprocess
import wave

import av
import numpy as np
import pytest
import torch

from dear_core import build, presets
from dear_core.data import decode, synthetic
from dear_core.depth.estimator import DepthEstimator
from dear_core.depth.store import DepthStore, StoreInfo, even_size
from dear_core.errors import InputError
from dear_core.eval import evaluate_checkpoint
from dear_core.predict import predict_video
from dear_core.run import run
from dear_core.runs import RunFolder
from tests.tiny_depth import dpt_hybrid, save_dpt

MODEL = "Intel/dpt-hybrid-midas"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny dpt-hybrid with random weights, as a folder that transformers has saved."""
    return save_dpt(dpt_hybrid(64), tmp_path_factory.mktemp("weights"), 64)


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    """A data set of ten clips with depth from the tiny DPT, and a checkpoint trained on it."""
    root = tmp_path_factory.mktemp("estimated")
    synthetic.generate(root / "data", train=10, validation=4, seed=3, progress=False)
    estimator = DepthEstimator.load(MODEL, weights)
    store = DepthStore.create(root / "depth", StoreInfo(MODEL, 60, weights=estimator.weights_hash))
    for path in sorted((root / "data" / "videos").glob("*.webm")):
        reader = decode.open_frames(path)
        frames = reader.read(np.arange(len(reader)))
        depth_THW = estimator.estimate(frames, even_size(*frames.shape[1:3], 60)).half().numpy()
        store.write(path.stem, depth_THW, reader.rate)
    changes = {
        "data.root": str(root / "data"), "data.depth_root": str(root / "depth"), "data.cache_dir": None,
        "train.epochs": 1, "train.batch_size": 5, "model.branches": ["rgb:videomamba", "depth:videomamba"],
    }  # fmt: skip
    config = build.resolve(presets.demo().replace(changes))
    assert (config.data.depth_store.model, config.data.depth_store.height) == (MODEL, 60)
    run(config, root / "results")
    return root, RunFolder(root / "results", config.key).last


@pytest.mark.slow
def test_a_video_gets_the_probabilities_of_validation(trained, weights, tmp_path):
    root, checkpoint = trained
    written = tmp_path / "predictions.jsonl"
    evaluate_checkpoint(checkpoint, predictions=written)
    rows = {row["clip"]: row["top5"] for row in map(json.loads, written.read_text().splitlines())}
    assert len(rows) == 4
    preview = tmp_path / "preview.mp4"
    for name, expected in rows.items():
        video = root / "data" / "videos" / f"{name}.webm"
        best = predict_video(video, checkpoint, depth_weights=weights, preview_to=preview)
        assert [text for text, _ in best["label"]] == [text for text, _ in expected["label"]]
        shares = [[share for _, share in top["label"]] for top in (best, expected)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-4)
    with av.open(str(preview)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == len(decode.open_frames(video))
    height, width = pictures[0].shape[:2]
    assert height > 240 and width == 2 * round(240 * 4 / 3)
    depth_HWC = pictures[0][:240, width // 2 :].astype(int)
    assert np.abs(depth_HWC - depth_HWC.mean(2, keepdims=True)).mean() < 3 < depth_HWC.std()
    assert (pictures[0][240:] > 200).mean() > 0.01  # the letters


@pytest.mark.slow
def test_depth_of_a_store_is_taken_where_it_is_given(trained, weights):
    root, checkpoint = trained
    name = sorted((root / "data" / "videos").glob("*.webm"))[0].stem
    video, depth = root / "data" / "videos" / f"{name}.webm", root / "depth" / f"{name}.webm"
    given = predict_video(video, checkpoint, depth=depth)
    estimated = predict_video(video, checkpoint, depth_weights=weights)
    assert given["label"] == estimated["label"]


@pytest.mark.slow
def test_what_does_not_fit_is_one_sentence(trained, weights, tmp_path):
    root, checkpoint = trained
    video = sorted((root / "data" / "videos").glob("*.webm"))[0]
    other = sorted((root / "depth").glob("*.webm"))
    lengths = {path: len(decode.open_frames(path)) for path in other}
    wrong = next(path for path in other if lengths[path] != lengths[root / "depth" / video.name])
    with pytest.raises(InputError, match="differ in their number of frames"):
        predict_video(video, checkpoint, depth=wrong)
    changed = dpt_hybrid(64)
    torch.nn.init.zeros_(changed.head.head[0].weight)
    save_dpt(changed, tmp_path / "changed", 64)
    with pytest.raises(
        InputError, match=r"--depth-weights: the checkpoint's depth is from Intel/dpt-hybrid-midas with"
    ):
        predict_video(video, checkpoint, depth_weights=tmp_path / "changed")


def sentence(run_command, *arguments) -> str:
    done: subprocess.CompletedProcess = run_command("-m", "dear_core.predict", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.mark.slow
def test_files_that_are_no_video_are_refused_in_one_sentence(trained, run_command, tmp_path):
    root, checkpoint = trained
    video = sorted((root / "data" / "videos").glob("*.webm"))[0]
    cut, sound, text = tmp_path / "cut.webm", tmp_path / "sound.wav", tmp_path / "notes.txt"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0" * 16000)
    text.write_text("not a video\n")
    for path, words in ((cut, "truncated"), (sound, "holds no video"), (text, "not readable as a video")):
        assert f"{path}: {words}" in sentence(run_command, path, "--checkpoint", checkpoint)


@pytest.mark.slow
def test_the_demos_depth_is_asked_for(run_command, tiny_config, tmp_path):
    config = build.resolve(tiny_config.replace({"model.branches": ["depth:videomamba"], "train.epochs": 1}))
    run(config, tmp_path)
    checkpoint = RunFolder(tmp_path, config.key).last
    video = next((build.manifest(config.data).root / "videos").glob("*.webm"))
    assert "--depth: the checkpoint was trained on rendered depth" in sentence(
        run_command, video, "--checkpoint", checkpoint
    )
    depth = video.parent.parent / "depth" / video.name
    done = run_command(
        "-m", "dear_core.predict", video, "--checkpoint", checkpoint, "--depth", depth, "--json"
    )
    best = json.loads(done.stdout)["top5"]["label"]
    assert done.returncode == 0 and len(best) == 5 and best[0][1] >= best[4][1] > 0
