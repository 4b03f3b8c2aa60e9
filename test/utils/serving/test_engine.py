"""The engine's queue: fair, bounded, and each failure stays where it belongs."""

import io
import math
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from serving_helpers import ANYONE, CLASSES, Bench, Weights, wait_until, weight_of
from torch import Tensor

from utils.call_memory import memory_of_row
from utils.data.locks import FileLock
from utils.errors import UserError
from utils.free_memory import SHARE_OF_MEMORY
from utils.serving import engine as engine_module
from utils.serving import lane as lanes
from utils.serving import results
from utils.serving.finishing import Finished, Finisher
from utils.serving.jobs import Client, Job
from utils.serving.lane import measured_budget
from utils.serving.limits import Limits
from utils.serving.refusal import Refusal
from utils.serving.requests import Asked, resolve
from utils.serving.results import ResultStore


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network calls take 8 rows."""
    monkeypatch.setattr(lanes, "measured_budget", lambda timed_call: 8)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.stop()


@pytest.fixture
def make_bench() -> Iterator:
    made = []

    def make(*args: object, **limits: object) -> Bench:
        made.append(Bench(Limits(**{"max_client_jobs": 64, **limits}), *args))
        return made[-1]

    yield make
    for bench in made:
        bench.engine.stop()


def refused(bench: Bench, client: Client = ANYONE, **asked: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        bench.submit(client, **asked)
    return caught.value


# --- Sharing ---


def test_equal_jobs_share_their_network_calls(bench: Bench) -> None:
    steps = 40
    for seed in range(8):
        bench.submit(num_images=1, sample_steps=steps, seed=seed, cfg_scale=1)
    bench.finish()
    assert len(bench.network.rows) <= 1.1 * steps
    assert sum(bench.network.rows) == 8 * steps


def test_a_short_job_behind_long_ones_gets_its_share_at_once(bench: Bench) -> None:
    for seed in range(8):
        bench.submit(num_images=8, sample="ddpm", sample_steps=1000, seed=seed, cfg_scale=1)
    short: list[Job] = []
    calls_at_its_end: list[int] = []

    def watch(number: int, *call: object) -> None:
        if number == 20:
            short.append(bench.submit(num_images=8, sample_steps=10, seed=99, cfg_scale=1))
        if short and short[0].has_ended and not calls_at_its_end:
            calls_at_its_end.append(number)
            for job in bench.engine.jobs.under_way():
                bench.engine.cancel(job)

    bench.network.before_call = watch
    bench.finish()
    assert short[0].status == "completed"
    # Of 8 rows a call it has 8/9 of one: its 80 rows take 90 calls.
    own_share = 8 * 10 / (8 / 9)
    assert calls_at_its_end[0] - 20 <= 1.2 * own_share


def test_large_images_do_not_starve_small_ones(bench: Bench) -> None:
    """A call of 64x64 pixels takes 40 times as long here as one of 8x8."""

    def slow(number: int, x: Tensor, *rest: object) -> None:
        time.sleep(0.04 if x.shape[-1] == 64 else 0.001)

    bench.network.before_call = slow
    large = bench.submit(num_images=8, sample_steps=50, image_size=(64, 64), cfg_scale=1)
    small = bench.submit(num_images=8, sample_steps=50, cfg_scale=1)
    bench.engine.start()
    wait_until(lambda: small.has_ended)
    # Half of the time was its own: by then the large one had no more than about as long.
    assert large.step <= 25
    bench.engine.cancel(large)


# --- Limits ---


def test_the_queue_is_bounded_and_says_when_to_come_back(make_bench) -> None:
    bench = make_bench(max_queue=3)
    for _ in range(3):
        bench.submit(sample_steps=5)
    refusal = refused(bench)
    assert (refusal.status, refusal.code) == (429, "queue_full")
    assert refusal.retry_after >= 1
    bench.finish()
    bench.submit(sample_steps=5)
    assert bench.engine.statistics.refused == 1


def test_no_client_takes_all_of_the_queue(make_bench) -> None:
    bench = make_bench(max_client_jobs=2)
    greedy = Client("", "10.0.0.1")
    bench.submit(greedy)
    bench.submit(greedy)
    assert refused(bench, greedy).code == "client_share_full"
    bench.submit(Client("", "10.0.0.2"))


def test_jobs_that_have_ended_leave_the_queue(bench: Bench) -> None:
    cancelled = [bench.submit(seed=seed) for seed in range(20)]
    for job in cancelled:
        bench.engine.cancel(job)
    kept = bench.submit(seed=20)
    bench.finish()
    assert kept.status == "completed"
    wait_until(lambda: not bench.engine._queue)


def test_jobs_wait_in_their_order_and_can_be_taken_out(bench: Bench) -> None:
    jobs = [bench.submit(seed=seed) for seed in range(3)]
    assert [bench.engine.queue_position(job) for job in jobs] == [0, 1, 2]
    bench.engine.cancel(jobs[1])
    assert [bench.engine.queue_position(job) for job in jobs] == [0, None, 1]
    bench.finish()
    assert [job.status for job in jobs] == ["completed", "cancelled", "completed"]
    assert jobs[1].started is None


def test_a_job_that_takes_too_long_is_ended(make_bench) -> None:
    bench = make_bench(deadline=0.3)
    bench.network.before_call = lambda *call: time.sleep(0.02)
    job = bench.submit(num_images=1, sample_steps=500)
    bench.finish()
    assert (job.status, job.error.status) == ("failed", 504)
    assert bench.submit(num_images=1, sample_steps=2).status == "queued"  # the engine lives


# --- Failures ---


def test_numbers_that_are_not_finite_are_no_image(bench: Bench) -> None:
    def poison(number: int, x: Tensor, *rest: object) -> None:
        if number == 3:
            x[0] = float("nan")

    bench.network.before_call = poison
    first = bench.submit(num_images=1, sample_steps=6, seed=1, cfg_scale=1)
    second = bench.submit(num_images=1, sample_steps=6, seed=2, cfg_scale=1)
    bench.finish()
    assert sorted([first.status, second.status]) == ["completed", "failed"]


def test_an_image_too_large_for_the_memory_fails_alone(bench: Bench) -> None:
    def fill_memory(number: int, x: Tensor, *rest: object) -> None:
        if x.shape[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    bench.network.before_call = fill_memory
    large = bench.submit(num_images=2, sample_steps=5, image_size=(16, 16))
    small = bench.submit(num_images=2, sample_steps=5)
    bench.finish()
    assert large.status == "failed" and "memory" in large.error.message
    assert small.status == "completed"


def test_an_image_that_does_not_fit_into_memory_is_not_tried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that lends more memory than it has would end the server."""
    of_row = memory_of_row(bench.network.config, (8, 8))
    free = 1.5 * of_row / SHARE_OF_MEMORY
    monkeypatch.setattr(lanes, "free_memory", lambda device: free)
    plain = bench.submit(num_images=2, sample_steps=5, cfg_scale=1)
    guided = bench.submit(num_images=2, sample_steps=5, cfg_scale=3)  # two rows each
    large = bench.submit(num_images=2, sample_steps=5, cfg_scale=1, image_size=(16, 16))
    bench.finish()
    assert plain.status == "completed"
    for job in (guided, large):
        assert job.status == "failed" and "more than the memory" in job.error.message


def test_memory_is_looked_at_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    of_row = memory_of_row(bench.network.config, (8, 8))
    monkeypatch.setattr(lanes, "measured_budget", measured_budget)
    monkeypatch.setattr(lanes, "LONGEST_CALL", 1e9)
    monkeypatch.setattr(lanes, "LEAST_THROUGHPUT", 0.0)
    found = []
    for rows in (0.5, 4.5, 8.5):  # another program ends, and then one more
        monkeypatch.setattr(lanes, "free_memory", lambda device, rows=rows: rows * of_row / 0.8)
        bench.network.rows.clear()
        job = bench.submit(num_images=16, sample_steps=3, cfg_scale=1)
        bench.finish()
        found.append((job.status, max(bench.network.rows, default=0)))
    assert found == [("failed", 0), ("completed", 4), ("completed", 8)]


def test_calls_are_as_large_as_memory_allows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "measured_budget", measured_budget)
    monkeypatch.setattr(lanes, "LONGEST_CALL", 1e9)
    monkeypatch.setattr(lanes, "LEAST_THROUGHPUT", 0.0)
    free = 4.5 * memory_of_row(bench.network.config, (8, 8)) / SHARE_OF_MEMORY
    monkeypatch.setattr(lanes, "free_memory", lambda device: free)
    bench.submit(num_images=16, sample_steps=3, cfg_scale=1)
    bench.finish()
    assert max(bench.network.rows) == 4


def test_an_image_that_cannot_begin_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = lanes.Lane._begun

    def fails(self: lanes.Lane, tasks: list) -> object:
        if any(task.seed == 2 for task in tasks):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begun(self, tasks)

    monkeypatch.setattr(lanes.Lane, "_begun", fails)
    jobs = [bench.submit(num_images=1, sample_steps=5, seed=seed) for seed in range(4)]
    bench.finish()
    assert [job.status for job in jobs] == ["completed", "completed", "failed", "completed"]
    assert "memory" in jobs[2].error.message
    assert bench.engine.is_ready


def test_a_network_that_always_fails_makes_the_server_unready(bench: Bench) -> None:
    def fail(*call: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bench.network.before_call = fail
    for seed in range(3):
        bench.submit(seed=seed)
        bench.finish()
    assert not bench.engine.is_ready
    # Where others decide by that who gets jobs, none would ever come that shows it is well
    bench.engine._last_failure -= engine_module.BROKEN_SECONDS
    assert bench.engine.is_ready


def test_a_network_that_is_not_loaded_is_not_overtaken_for_ever(make_bench, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 0.0)
    bench = make_bench(Weights(*[weight_of(name) for name in "ab"]), max_weights=1)
    jobs = [bench.submit(weight="a", sample_steps=20, num_images=1)]
    ended: list[str] = []

    def watch(number: int, *call: object) -> None:
        if number == 2:
            jobs.extend(bench.submit(weight=name, sample_steps=3, num_images=1) for name in "baa")
        for job in jobs:
            if job.has_ended and job.id not in ended:
                ended.append(job.id)

    bench.network.before_call = watch
    bench.finish()
    ended += [job.id for job in jobs if job.id not in ended]
    assert ended[:2] == [job.id for job in jobs[:2]]
    assert all(job.status == "completed" for job in jobs)


def test_who_has_left_while_calls_were_timed_has_none_made(bench: Bench, monkeypatch) -> None:
    job = bench.submit()

    def budget(lane: object) -> int:
        bench.engine.cancel(job)
        return 8

    monkeypatch.setattr(lanes.Lane, "budget", budget)
    bench.finish()
    assert job.status == "cancelled" and bench.network.rows == []


def test_a_few_images_of_each_job_are_finished_in_turn(monkeypatch) -> None:
    """Who has many enlarged holds up nobody else."""
    order: list[tuple[str, int]] = []
    may_begin = threading.Event()

    def finish(self: Finisher, finished: Finished) -> None:
        may_begin.wait(10)
        order.append((finished.job.id, finished.place))

    monkeypatch.setattr(Finisher, "_finish", finish)
    finisher = Finisher(None, None, None, None)
    pixels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    jobs = {name: SimpleNamespace(id=name, has_ended=False) for name in "abc"}
    for name, count in (("a", 9), ("b", 2), ("c", 5)):
        for place in range(count):
            finisher.put(Finished(jobs[name], place, pixels, {}))
    may_begin.set()
    finisher.close()
    # The first image may have been taken before the others were there
    assert "".join(name for name, _ in order) in ("aaaabbccccaaaaca", "aaaaabbccccaaaac")
    for name in "abc":
        places = [place for of, place in order if of == name]
        assert places == sorted(places)


def test_the_images_of_a_killed_server_are_removed_by_the_next(tmp_path, monkeypatch) -> None:
    """Whose lock nobody holds; other programs' folders stay."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here = f"iddm-images-{socket.gethostname()}-"
    elsewhere = "iddm-images-elsewhere-x"
    notes = {f"{here}killed": results.NOTE, f"{here}others": "", elsewhere: results.NOTE}
    for name, note in notes.items():
        (tmp_path / name / "job").mkdir(parents=True)
        (tmp_path / name / ".lock").write_text(note)
    first = ResultStore(10)
    second = ResultStore(10)
    assert not (tmp_path / f"{here}killed").exists()
    assert len(list(tmp_path.iterdir())) == 4
    for store in (first, second):
        store.close()
    others = sorted([f"{here}others", elsewhere])
    assert sorted(folder.name for folder in tmp_path.iterdir()) == others


def test_a_folder_that_another_server_has_just_removed_is_not_used(tmp_path, monkeypatch) -> None:
    """Between its lock and its being held."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    acquire = FileLock.try_acquire
    removed: list[Path] = []

    def after_another(self: FileLock, shared: bool = False) -> bool:
        if not removed:
            removed.append(self.path.parent)
            shutil.rmtree(self.path.parent)
        return acquire(self, shared)

    monkeypatch.setattr(FileLock, "try_acquire", after_another)
    store = ResultStore(10)
    assert not removed[0].exists() and store._folder.is_dir()
    store.close()


def test_weights_that_have_become_unusable(bench: Bench) -> None:
    def load(*args: object) -> None:
        raise UserError("/secret/path/tiny.pt is damaged")

    bench.engine._models._load = load
    job = bench.submit()
    bench.finish()
    assert job.error.message == "the weight tiny cannot be loaded"


def test_networks_take_turns_in_memory(make_bench) -> None:
    bench = make_bench(Weights(*[weight_of(name) for name in "abcd"]), max_weights=2)
    loaded: list[str] = []
    in_memory: list[int] = []
    load = bench.load

    def loading(weight, *rest):
        loaded.append(weight.name)
        in_memory.append(len(bench.engine._models.all()))
        return load(weight, *rest)

    bench.engine._models._load = loading
    jobs = [bench.submit(weight=name, sample_steps=20) for name in "abcdab"]
    bench.finish()
    assert all(job.status == "completed" for job in jobs)
    assert sorted(loaded)[:4] and set(loaded) == set("abcd")
    assert max(in_memory) <= 1  # while one is loaded, at most one other is there


# --- What can be seen ---


def test_a_job_belongs_to_its_owner(bench: Bench) -> None:
    mine, other = Client("mine"), Client("other")
    job = bench.submit(mine)
    assert bench.engine.jobs.find(job.id, mine) is job
    with pytest.raises(Refusal) as caught:
        bench.engine.jobs.find(job.id, other)
    assert caught.value.status == 404
    assert bench.engine.jobs.all_of(other) == []


def test_jobs_expire(make_bench) -> None:
    bench = make_bench(keep_jobs=2)
    jobs = [bench.submit(seed=seed, sample_steps=2) for seed in range(4)]
    bench.finish()
    with pytest.raises(Refusal) as expired:
        bench.engine.jobs.find(jobs[0].id, ANYONE)
    assert expired.value.status == 410
    with pytest.raises(OSError):
        bench.engine.image(jobs[0], 0)
    assert bench.engine.image(jobs[3], 0).startswith(b"\x89PNG")
    for unknown in ("nonsense", jobs[0].id + "0", jobs[0].id.replace("-", "-f", 1)):
        with pytest.raises(Refusal) as caught:
            bench.engine.jobs.find(unknown, ANYONE)
        assert caught.value.status == 404


def test_results_are_bounded_on_disk(make_bench) -> None:
    bench = make_bench(keep_bytes=5000)
    jobs = []
    for seed in range(12):
        jobs.append(bench.submit(num_images=2, seed=seed, sample_steps=2))
        bench.finish()
    folder = bench.engine.results._folder
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 5000
    assert bench.engine.image(jobs[-1], 1)
    bench.engine.stop()
    assert not folder.exists()


def test_snapshots_and_previews(bench: Bench) -> None:
    asked = Asked(num_images=2, sample_steps=8, cfg_scale=1, snapshots=3)
    request = resolve(asked, bench.weights, bench.limits)
    job = bench.engine.submit(request, ANYONE, is_kept=False)
    job.watchers = 1
    versions: list[int] = []
    job.listeners.append(lambda: versions.append(job.version))
    bench.finish()
    assert [snapshot.calls_done for snapshot in job.snapshots[1]] == [2, 4, 6]
    assert job.snapshots[0][0].pixels.shape == (1, 8, 8)
    assert job.preview_step >= 1 and job.preview[1].dtype == torch.uint8
    assert versions == sorted(versions) and len(versions) >= 8


def test_a_job_that_is_kept_drops_the_states_on_the_way(bench: Bench) -> None:
    """They would fill the memory for as long as its images lie on the disk."""
    job = bench.submit(num_images=2, sample_steps=8, snapshots=3)
    job.watchers = 1
    bench.finish()
    assert job.preview_step >= 1
    assert job.snapshots == [[], []] and job.preview == [None, None]


def test_what_a_png_says(bench: Bench) -> None:
    job = bench.submit(num_images=2, sample="plms", sample_steps=4, seed=7, class_name="boot")
    bench.finish()
    text = Image.open(io.BytesIO(bench.engine.image(job, 1))).text
    assert text["seed"] == "8" and text["class"] == "boot" and text["sampler"] == "plms"
    assert text["sample_steps"] == "4" and text["weights"] == "tiny.pt"


# --- The end ---


def test_draining_lets_jobs_end_and_takes_no_more(bench: Bench) -> None:
    bench.network.before_call = lambda *call: time.sleep(0.01)
    running = bench.submit(num_images=1, sample_steps=30)
    bench.engine.start()
    wait_until(lambda: running.status == "generating")
    bench.engine.drain(grace=30)
    assert running.status == "completed"
    assert not bench.engine.is_ready
    assert refused(bench).status == 503


def test_draining_fails_what_has_not_begun_or_takes_too_long(make_bench) -> None:
    bench = make_bench()
    waiting = bench.submit()
    bench.engine.drain(grace=0.1)
    assert (waiting.status, waiting.error.status) == ("failed", 503)
    slow = make_bench()
    slow.network.before_call = lambda *call: time.sleep(0.01)
    running = slow.submit(num_images=1, sample_steps=900)
    slow.engine.start()
    wait_until(lambda: running.status == "generating")
    slow.engine.drain(grace=0.2)
    assert (running.status, running.error.status) == ("failed", 503)


# --- What is asked ---


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"weight": "nothing"}, 404, "weight"),
        ({"weight": "../tiny"}, 404, "weight"),
        ({"class_name": "cat"}, 400, "class_name"),
        ({"num_images": 0}, 400, "num_images"),
        ({"num_images": 65}, 400, "num_images"),
        ({"sample": "euler"}, 400, "sample"),
        ({"sample_steps": 1001}, 400, "sample_steps"),
        ({"cfg_scale": -1.0}, 400, "cfg_scale"),
        ({"cfg_scale": math.nan}, 400, "cfg_scale"),
        ({"seed": 2**32 - 1, "num_images": 2}, 400, "seed"),
        ({"image_size": (9, 8)}, 400, "image_size"),
        ({"image_size": (2048, 8)}, 400, "image_size"),
        ({"image_format": "tiff"}, 400, "image_format"),
        ({"upscale": "tiny"}, 404, "upscale"),
    ],
)
def test_what_cannot_be_made_is_refused(bench: Bench, asked: dict, status: int, param: str) -> None:
    refusal = refused(bench, **asked)
    assert (refusal.status, refusal.param) == (status, param)


def test_classes_by_name_number_in_turn_and_each_once(bench: Bench) -> None:
    def labels(**asked: object) -> tuple:
        return bench.submit(**asked).request.labels

    assert labels(num_images=4) == (0, 1, 2, 0)
    assert labels(num_images=2, class_name="trouser") == (2, 2)
    assert labels(class_name="1") == (1,)
    assert labels(class_name="-1") == tuple(range(len(CLASSES)))
