"""The synthetic data set: its form on disk, its determinism, and that colour does not tell depth."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from dear_core.data import synthetic
from dear_core.data.scene import draw_scene
from dear_core.data.scene_actions import (
    AWAY,
    BEHIND,
    DEPTH_ONLY_PAIRS,
    FRONT,
    LIFT,
    PUSH_LEFT,
    PUSH_RIGHT,
    TEMPLATES,
    TOWARDS,
)
from dear_core.data.synthetic import ensure, generate, render_clip, split_labels
from dear_core.depth.store import DepthStore

SMALL = {"train": 6, "validation": 4, "seed": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "demo"
    generate(root, **SMALL, workers=2, progress=False)
    return root


def _read(path: Path) -> np.ndarray:
    import decord  # after av, whose encoder does not open once decord's libvpx is loaded

    reader = decord.VideoReader(str(path), num_threads=1)
    assert reader.get_avg_fps() == pytest.approx(12)
    return reader.get_batch(range(len(reader))).asnumpy()


def _entries(root: Path) -> list[dict]:
    return [e for split in ("train", "validation") for e in json.loads((root / f"{split}.json").read_text())]


def _states(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def _unit(depth_THW: np.ndarray) -> np.ndarray:
    return (depth_THW - depth_THW.min()) / (depth_THW.max() - depth_THW.min())


def test_annotations_have_the_form_of_something_something_v2(made: Path) -> None:
    classes = json.loads((made / "labels.json").read_text())
    assert list(classes.values()) == [str(k) for k in range(10)]
    assert list(classes) == sorted(classes)
    assert "Passing something in front of something" in classes
    sizes = [len(json.loads((made / f"{s}.json").read_text())) for s in ("train", "validation")]
    assert sizes == [6, 4]
    for entry in _entries(made):
        assert set(entry) == {"id", "label", "template", "placeholders"}
        assert entry["template"].replace("[", "").replace("]", "") in classes
        label = entry["template"]
        for noun in entry["placeholders"]:
            label = label.replace("[something]", noun, 1)
        assert entry["label"] == label
        assert "[" not in label
        assert entry["id"].isdecimal()
    assert len({e["id"] for e in _entries(made)}) == 10


def test_videos_are_vp9_240_tall_12_fps_2_to_5_seconds_with_depth_for_each_frame(made: Path) -> None:
    store = DepthStore.open(made / "depth")
    assert (store.info.model, store.info.height) == ("synthetic", 120)
    assert store.ids() == {e["id"] for e in _entries(made)} == {p.stem for p in (made / "videos").iterdir()}
    for entry in _entries(made):
        path = made / "videos" / f"{entry['id']}.webm"
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "vp9"
        rgb_THWC, depth_THWC = _read(path), _read(store.path(entry["id"]))
        assert rgb_THWC.shape[1] == 240
        assert rgb_THWC.shape[2] in (320, 426)
        assert 24 <= len(rgb_THWC) <= 60
        assert depth_THWC.shape[:2] == (len(rgb_THWC), 120)


def test_what_is_on_disk_is_what_was_rendered(made: Path) -> None:
    labels = split_labels(SMALL["seed"], 0, SMALL["train"])
    for number in (0, 5):
        rgb_THWC, depth_THW, _ = render_clip(SMALL["seed"], number, int(labels[number]))
        read_THWC = _read(made / "videos" / f"{100001 + number}.webm").astype(float)
        assert 10 * np.log10(255**2 / np.mean((read_THWC - rgb_THWC) ** 2)) > 32
        read_THW = _read(made / "depth" / f"{100001 + number}.webm")[..., 0] / 255
        assert -10 * np.log10(np.mean((read_THW - _unit(depth_THW)) ** 2)) > 45


@pytest.mark.parametrize("pair", DEPTH_ONLY_PAIRS)
@pytest.mark.parametrize("number", [0, 1, 11])
def test_paired_labels_have_the_same_colour_to_the_bit_and_other_depth(
    pair: tuple[int, int], number: int
) -> None:
    first, second = (render_clip(5, number, label) for label in pair)
    np.testing.assert_array_equal(first[0], second[0])
    assert draw_scene(5, number, pair[0]).placeholders == draw_scene(5, number, pair[1]).placeholders
    assert np.abs(_unit(first[1]) - _unit(second[1])).max() > 0.2


@pytest.mark.parametrize("number", range(0, 60, 3))
def test_the_true_distance_follows_the_label(number: int) -> None:
    nearer = draw_scene(1, number, TOWARDS).bodies[0].track.depth_T
    farther = draw_scene(1, number, AWAY).bodies[0].track.depth_T
    assert nearer[0] / nearer[-1] > 1.45
    assert farther[-1] / farther[0] > 1.45
    for label, sign in ((FRONT, 1), (BEHIND, -1)):
        mover, partner = (body.track for body in draw_scene(1, number, label).bodies[:2])
        ratio = (partner.depth_T / mover.depth_T) ** sign
        assert (ratio > 1.49).all()
        assert (ratio < 2.01).all()
        apart_T = np.hypot(mover.u_T - partner.u_T, mover.v_T - partner.v_T)
        assert (apart_T > 1.15 * (mover.radius_T + partner.radius_T)).all()


@pytest.mark.parametrize("which", [0, 1])
def test_absolute_distance_alone_does_not_tell_front_from_behind(which: int) -> None:
    """No single threshold on the distance of the mover (0) or the partner (1) is right for 85 %."""
    front_N, behind_N = (
        np.array([draw_scene(2, n, label).bodies[which].track.depth_T[0] for n in range(200)])
        for label in (FRONT, BEHIND)
    )
    right = [
        0.5 * (np.mean(front_N < cut) + np.mean(behind_N >= cut))
        for cut in np.concatenate([front_N, behind_N])
    ]
    assert max(max(right), 1 - min(right)) < 0.85


def test_directions_show_in_the_image_and_clutter_does_not_depend_on_the_label() -> None:
    for number in range(20):
        right, left, lift = (draw_scene(1, number, k) for k in (PUSH_RIGHT, PUSH_LEFT, LIFT))
        aspect = right.room.aspect
        assert right.bodies[0].track.u_T[-1] - right.bodies[0].track.u_T[0] > 0.35 * aspect
        assert left.bodies[0].track.u_T[-1] - left.bodies[0].track.u_T[0] < -0.35 * aspect
        assert lift.bodies[0].track.v_T[0] - lift.bodies[0].track.v_T[-1] > 0.3
        others = [draw_scene(1, number, label) for label in range(10)]
        clutter = {
            tuple((b.noun, float(b.track.u_T[0]), float(b.track.depth_T[0])) for b in s.bodies[n:])
            for s in others
            for n in [len(s.placeholders)]
        }
        assert len(clutter) == 1


@pytest.mark.slow
def test_a_clip_is_the_same_whatever_the_number_of_processes(made: Path, tmp_path: Path) -> None:
    generate(tmp_path / "one", **SMALL, workers=1, progress=False)
    for path in sorted(made.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "one" / path.relative_to(made)).read_bytes(), path
    again, other = render_clip(3, 1, 4), render_clip(4, 1, 4)
    first = render_clip(3, 1, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


def test_ensure_does_nothing_twice_and_continues_an_interrupted_set(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "demo"
    shutil.copytree(made, root)
    before = _states(root)
    ensure(root, **SMALL, progress=False)
    assert _states(root) == before
    (root / "videos" / "100002.webm").unlink()
    (root / "synthetic.json").unlink()
    ensure(root, **SMALL, workers=1, progress=False)
    after = _states(root)
    assert set(after) == set(before)
    kept = [name for name in before if name.endswith(".webm") and "100002" not in name]
    assert len(kept) == 18
    assert all(after[name] == before[name] for name in kept)
    name = "videos/100002.webm"
    assert (root / name).read_bytes() == (made / name).read_bytes()


def test_a_folder_that_holds_something_else_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="no synthetic data set"):
        ensure(tmp_path, **SMALL, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]
    before = _states(made)
    for call in (ensure, generate):
        with pytest.raises(ValueError, match=r"holds the data set .*'seed': 3.*'seed': 4"):
            call(made, train=6, validation=4, seed=4, progress=False)
    assert _states(made) == before


@pytest.mark.parametrize("bad", [{"train": 0}, {"validation": 0}, {"seed": -1}, {"workers": 0}])
def test_bad_counts_are_refused_and_nothing_is_made(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        generate(tmp_path / "x", **bad, progress=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_an_error_in_a_worker_names_the_clip(tmp_path: Path) -> None:
    generate_root = tmp_path / "demo"
    (generate_root / "videos").mkdir(parents=True)
    synthetic._write_json(generate_root / synthetic.STARTED, synthetic._parameters(1, 1, 0))
    (generate_root / "videos" / "100002.webm").mkdir()  # in the way of the rename
    with pytest.raises(RuntimeError, match="clip 100002"):
        generate(generate_root, train=1, validation=1, seed=0, workers=1, progress=False)
    assert not (generate_root / "synthetic.json").exists()


@pytest.mark.parametrize("count", [10, 37, 600])
def test_classes_are_balanced_and_shuffled_by_the_seed(count: int) -> None:
    labels = split_labels(0, 0, count)
    counts = Counter(labels.tolist())
    assert set(counts) == set(range(len(TEMPLATES)))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == count
    assert labels.tolist() == split_labels(0, 0, count).tolist()
    assert labels.tolist() != split_labels(1, 0, count).tolist()
    assert labels.tolist() != sorted(labels.tolist())
