"""The depth command, for real: killed, continued, refused, repaired; and its parts without the command."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import ray
import torch
from filelock import FileLock, Timeout
from PIL import Image
from ray.cluster_utils import Cluster
from rich.console import Console

from dear_core.config import DataConfig
from dear_core.data import decode
from dear_core.depth.estimator import DepthEstimator
from dear_core.depth.store import DepthStore, even_size
from dear_core.errors import InputError
from ray_jobs import depth, depth_pipeline, depth_pool, depth_progress, schedule
from ray_jobs.depth_batches import Batches, Done, Failed, Item, Piece, Video
from ray_jobs.depth_pipeline import Pipeline
from tests.tiny_depth import dpt_hybrid, save_dpt

ROOT = Path(__file__).parents[2]
MODEL = "Intel/dpt-hybrid-midas"
SIDE = 128  # of the network's input: each video takes some tenths of a second
SIZES = ((64, 96), (64, 64), (96, 64), (64, 118))
LENGTHS = (24, 37, 31, 27, 42, 29, 33, 38)


def write_video(path, frames, height, width, seed):
    """Moving blocks of random colours, as VP9."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream(
            "libvpx-vp9", rate=12, options={"deadline": "realtime", "cpu-used": "8"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = np.kron(np.roll(blocks, t, axis=1), np.ones((16, 16, 1), np.uint8))[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads of torch crawl where other processes keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny dpt-hybrid with random weights, as a folder that transformers has saved."""
    return save_dpt(dpt_hybrid(SIDE), tmp_path_factory.mktemp("weights"), SIDE)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos of four sizes in the form of Something-Something V2; tests must not change them."""
    root = tmp_path_factory.mktemp("videos")
    (root / "videos").mkdir()
    for number, frames in enumerate(LENGTHS):
        write_video(root / "videos" / f"{number}.webm", frames, *SIZES[number % len(SIZES)], seed=number)
    clips = [{"id": str(number), "template": "Doing [something]"} for number in range(len(LENGTHS))]
    (root / "labels.json").write_text(json.dumps({"Doing something": "0"}))
    (root / "train.json").write_text(json.dumps(clips[:6]))
    (root / "validation.json").write_text(json.dumps(clips[6:]))
    return root


@pytest.fixture
def options(videos, weights, tmp_path):
    """Options of the command, with some replaced."""

    def make(**changes):
        given = {"data": DataConfig(root=str(videos)), "model": MODEL, "weights": weights, "height": 64}
        return depth.Options(**given | {"out": tmp_path / "depth"} | changes)

    return make


# --- the command


def start(home, root, weights):
    arguments = f"--data.root {root} --weights {weights} --out depth --height 64 --batch 4 "
    arguments += "--workers 1 --cpus-per-worker 1"
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DEAR_"))}
    return subprocess.Popen(
        [sys.executable, "ray_jobs/depth.py", *arguments.split()],
        cwd=ROOT,
        env=keep | {"DEAR_HOME": str(home), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def made(store):
    """The finished files of a store, each with its time."""
    return {path.name: path.stat().st_mtime_ns for path in store.glob("[!.]*.*") if path.suffix != ".json"}


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def command_of(pid):
    """What a process is called; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def worker_of(driver):
    """The process of a depth worker that a driver's own Ray has started."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid, stat = int(folder.name), (folder / "stat").read_text()
            parents[pid] = int(stat.rpartition(")")[2].split()[1])
            if command_of(pid).startswith(b"ray::Worker"):
                workers.append(pid)
        except OSError:
            continue  # it has ended

    def descends(pid):
        return pid == driver or (pid in parents and descends(parents[pid]))

    return next((pid for pid in workers if descends(pid)), None)


@pytest.mark.slow
def test_killed_continued_and_repaired(videos, weights, options, tmp_path, capsys, monkeypatch):
    """A worker is killed, then the command; the next ones make the rest, and no finished file again."""
    root, store = tmp_path / "data", tmp_path / "depth"
    (root / "videos").mkdir(parents=True)
    for path in videos.rglob("*.*"):
        (root / path.relative_to(videos)).write_bytes(path.read_bytes())
    whole = (root / "videos" / "3.webm").read_bytes()
    (root / "videos" / "3.webm").write_bytes(whole[: len(whole) // 2])

    driver = start(tmp_path, root, weights)
    wait_for(lambda: made(store) or driver.poll() is not None)
    os.kill(wait_for(lambda: worker_of(driver.pid)), signal.SIGKILL)
    before = made(store)
    wait_for(lambda: len(made(store)) > len(before) or driver.poll() is not None)
    with pytest.raises(Timeout):
        FileLock(store / ".depth.lock", timeout=0).acquire()
    worker = wait_for(lambda: worker_of(driver.pid))
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, driver.communicate()
    wait_for(lambda: command_of(worker) == b"")  # it sees that its driver is gone
    before = made(store)
    assert 1 < len(before) < 7

    part = store / ".0123456789abcdef0123456789abcdef.webm"
    part.touch()  # of a writer that was killed
    again = options(data=DataConfig(root=str(root)), workers=1, cpus_per_worker=1)
    try:
        assert depth.main(again) == 1
        out = capsys.readouterr().out
        assert f"8 videos, {len(before)} of them done before, {8 - len(before)} to do" in out
        (failed,) = [line for line in out.splitlines() if line.startswith("failed: ")]
        assert failed.startswith(f"failed: 3: {root}/videos/3.webm: "), failed
        after = made(store)
        assert len(after) == 7 and after.items() >= before.items()
        assert not part.exists()

        (root / "videos" / "3.webm").write_bytes(whole)
        monkeypatch.setattr(schedule, "connect", lambda *_: None)  # it is connected
        assert depth.main(again) == 0
    finally:
        ray.shutdown()
    out = capsys.readouterr().out
    assert "7 of them done before, 1 to do" in out and "1 video, 27 frames in" in out
    assert len(made(store)) == 8 and made(store).items() >= after.items()
    opened = DepthStore.open(store)
    frames = [len(decode.open_frames(opened.path(str(number)))) for number in range(8)]
    assert frames == list(LENGTHS)

    done = made(store)
    assert depth.main(options()) == 0
    assert "8 of them done before, 0 to do" in capsys.readouterr().out
    assert depth.main(options(verify=True)) == 0
    assert "8 videos, 261 frames: nothing wrong" in capsys.readouterr().out
    assert made(store) == done
    opened.path("5").unlink()
    assert depth.main(options(verify=True)) == 1
    assert "8 videos, 261 frames: 1 wrong" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_name_is_one_sentence(videos, weights, run_command):
    done = run_command(
        "ray_jobs/depth.py", "--data.root", videos, "--model", "Intel/dpt-hybrid", "--out", "d"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "did you mean Intel/dpt-hybrid-midas?" in done.stderr


def test_what_is_refused_before_ray_starts(options, videos, tmp_path):
    store = tmp_path / "depth"
    with pytest.raises(InputError, match="--batch 0"):
        depth.main(options(batch=0))
    with pytest.raises(InputError, match=r"hf download|no config\.json"):
        depth.main(options(weights=tmp_path / "nowhere"))
    assert not store.exists()
    depth._open_store(options(), store)
    with pytest.raises(InputError, match=r"64.*48|48.*64"):
        depth.main(options(height=48))
    with FileLock(store / ".depth.lock"), pytest.raises(InputError, match="another depth command"):
        depth.main(options())
    gone = tmp_path / "gone"
    gone.mkdir()
    with pytest.raises(InputError, match=r"files that are not there: .*/gone/0\.webm, .* and 3 more; add"):
        depth.main(options(data=DataConfig(root=str(videos), videos=str(gone))))
    assert not made(store)


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(depth_progress, "LINE_EVERY", 0.0)
    state = depth_pool.State(3, [Done("a", 5), Failed("b", "why")], workers=1, frames=7)
    with depth_progress.Show(Console(soft_wrap=True), 3) as show:
        show(state)
    out = capsys.readouterr().out
    assert out.startswith("2 of 3 videos, 1 failed, ") and "frames/s, 1 worker, 0 min left" in out


# --- batches and the pipeline


class Shelf:
    """Stands for a store: keeps what is written, exactly."""

    def __init__(self, root):
        self.root, self.info, self.kept = root, SimpleNamespace(height=48), {}

    def write(self, source, depth_THW, fps):
        self.kept[source] = np.array(depth_THW), fps


def run_pipeline(weights, items, shelf, batch, threads=1):
    pipeline = Pipeline(DepthEstimator.load(MODEL, weights), shelf, batch, threads, threads)
    futures = [pipeline.submit(item) for item in items]
    pipeline.close()
    return [future.result(timeout=0) for future in futures]


def items_of(videos):
    return [Item(str(n), str(videos / "videos" / f"{n}.webm")) for n in range(len(LENGTHS))]


@pytest.mark.slow
def test_batches_across_videos_give_what_each_video_gives(videos, weights, tmp_path):
    shelf = Shelf(tmp_path)
    outcomes = run_pipeline(weights, items_of(videos), shelf, batch=16, threads=2)
    assert outcomes == [Done(str(n), frames) for n, frames in enumerate(LENGTHS)]
    estimator = DepthEstimator.load(MODEL, weights)
    for item, frames in list(zip(items_of(videos), LENGTHS, strict=True))[:5]:
        read = decode.open_frames(Path(item.path)).read(np.arange(frames))
        alone = estimator.estimate(read, even_size(*read.shape[1:3], 48)).numpy()
        together, rate = shelf.kept[item.source]
        assert rate == Fraction(12)
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-3)
    assert alone.std() > 0.1  # the comparison means something


def test_long_videos_are_gathered_in_a_file_without_a_name(videos, weights, tmp_path, monkeypatch):
    shelf, spooled = Shelf(tmp_path), Shelf(tmp_path)
    run_pipeline(weights, items_of(videos)[:2], shelf, batch=16)
    monkeypatch.setattr(depth_pipeline, "SPOOL_ABOVE", 0)
    run_pipeline(weights, items_of(videos)[:2], spooled, batch=16)
    for source, (exact, _) in shelf.kept.items():
        np.testing.assert_allclose(spooled.kept[source][0], exact, rtol=1e-3, atol=1e-6)
        assert spooled.kept[source][0].dtype == np.float16
    assert not list(tmp_path.iterdir())


def test_a_bad_video_fails_alone_and_a_bad_disk_ends_all(videos, weights, tmp_path):
    (tmp_path / "bad.webm").write_bytes(b"no video")
    for number, side in ((1, 48), (2, 48), (3, 48), (4, 64)):
        Image.new("RGB", (64, side)).save(tmp_path / f"{number}.png")
    items = [
        Item("bad", str(tmp_path / "bad.webm")),
        *items_of(videos)[:1],
        Item("folder", str(tmp_path), "{}.png", frames=3),
        Item("uneven", str(tmp_path), "{}.png"),
    ]
    bad, good, folder, uneven = run_pipeline(weights, items, Shelf(tmp_path), batch=3)
    assert isinstance(bad, Failed) and "bad.webm" in bad.reason and good == Done("0", 24)
    assert folder == Done("folder", 3)
    assert isinstance(uneven, Failed) and "differ in size" in uneven.reason

    class FullDisk(Shelf):
        def write(self, source, depth_THW, fps):
            raise OSError(28, "No space left on device")

    pipeline = Pipeline(DepthEstimator.load(MODEL, weights), FullDisk(tmp_path), 16)
    futures = [pipeline.submit(item) for item in items_of(videos)[:2]]
    for future in futures:
        with pytest.raises(RuntimeError, match="No space left"):
            future.result(timeout=60)
    with pytest.raises(RuntimeError, match="No space left"):
        pipeline.submit(items[1])


def test_batches_are_full_and_rare_sizes_do_not_wait_for_ever():
    video = Video(Item("a", "a"), None)
    batches = Batches(8, shape=lambda height, width: (height, width))
    batches.add(Piece(video, 0, np.zeros((3, 4, 6, 3), np.uint8)))
    for start in range(0, 160, 5):
        batches.add(Piece(video, start, np.zeros((5, 8, 6, 3), np.uint8)))
    sizes, shapes = [], []
    while (key := batches.full()) is not None:
        pieces = batches.take(key)
        sizes.append(sum(len(piece.frames_BHWC) for piece in pieces))
        shapes.append(pieces[0].frames_BHWC.shape[1])
        assert {piece.frames_BHWC.shape[1] for piece in pieces} == {shapes[-1]}
    assert shapes.index(4) == 9 and sum(sizes) == 163
    assert set(sizes[:9] + sizes[10:]) == {8}
    assert batches.take(None) == []


# --- the pool


@pytest.fixture
def cluster():
    """A cluster of one node with one CPU, to which nodes can be added; pools look at it often."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_lost_workers_lost_nodes_and_videos_that_kill(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(depth_pool, "LOOK_EVERY", 0.2)

    @ray.remote(num_cpus=1, max_concurrency=5)
    class FakeWorker:
        def start(self):
            pass

        def frames(self):
            return 1

        def process(self, item):
            if item.source == "bad":
                os._exit(1)
            while not Path(item.path).exists():
                time.sleep(0.02)
            return Done(item.source, 1)

    def pool():
        return depth_pool.Pool(lambda ahead: FakeWorker.remote(), depth_pool.Needs(cpus=1))

    assert depth_pool.needs(None, None) == depth_pool.Needs(cpus=1)
    with pytest.raises(InputError, match=r"--gpus-per-worker 0\.5: no node has room"):
        depth_pool.needs(None, 0.5)

    items = [Item(str(n), "/") for n in range(20)]
    state = pool().run([*items[:10], Item("bad", "/"), *items[10:]])
    assert [failure.source for failure in state.failures] == ["bad"]
    assert "two workers were lost on it" in state.failures[0].reason
    assert sorted(done.source for done in state.done) == sorted(item.source for item in items)

    # A second node comes, takes its share, and is gone before any of it is done.
    workers, results = [], []
    gate = tmp_path / "gate"
    slow = [Item(str(n), str(gate)) for n in range(20)]

    def run():
        results.append(pool().run(slow, lambda state: workers.append(state.workers)))

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: workers and workers[-1] == 1)
    node = cluster.add_node(num_cpus=1)
    wait_for(lambda: workers[-1] == 2)
    cluster.remove_node(node, allow_graceful=False)
    wait_for(lambda: workers[-1] == 1)
    gate.touch()
    thread.join(timeout=60)
    assert not results[0].failures and len(results[0].done) == 20

    # Workers that never come up are not tried for ever.
    @ray.remote(num_cpus=1)
    class NoWorker(FakeWorker.__ray_metadata__.modified_class):
        def start(self):
            raise OSError("no such device")

    monkeypatch.setattr(depth_pool, "LOSSES", 1)
    state = depth_pool.Pool(lambda ahead: NoWorker.remote(), depth_pool.Needs(cpus=1)).run(items)
    assert "no such device" in state.given_up and not state.outcomes
