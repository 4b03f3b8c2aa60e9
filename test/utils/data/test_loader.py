"""Batches, files that vanish during a run, and the end of the workers."""

import os
import pickle
import shutil
import signal
import time

import pytest
import torch
from PIL import Image

from utils.data import StepSampler, build_loader, load_image_set
from utils.errors import ReadError

SIZE = (28, 28)


@pytest.fixture
def read_again(images):
    found = load_image_set(images, SIZE, True, cache="none")
    found.retry_pauses = (0.01, 0.01)
    return found


def batches(found, workers, steps=5):
    sampler = StepSampler(found, 4, 0, 0, steps)
    return iter(build_loader(found, sampler, 4, workers, pin=False))


def test_a_file_that_comes_back_is_read(read_again, images, monkeypatch):
    file, aside = images / "bag" / "000.png", images.parent / "aside.png"
    shutil.move(file, aside)
    monkeypatch.setattr(time, "sleep", lambda _: shutil.move(aside, file))
    assert read_again[0][0].shape == (1, *SIZE)


def test_a_file_that_is_gone_is_an_error_as_a_value(read_again, images):
    (images / "bag" / "000.png").unlink()
    item = read_again[0]
    assert isinstance(item, ReadError)
    assert "bag/000.png" in str(item) and "can no longer be read: No such file" in str(item)
    assert str(pickle.loads(pickle.dumps(item))) == str(item)


def test_a_file_that_has_changed(read_again, images):
    Image.new("L", SIZE, 7).save(images / "bag" / "000.png")
    assert "bag/000.png has changed since the run began" in str(read_again[0])


def test_retries_and_their_pauses(read_again, images, monkeypatch):
    paused = []
    monkeypatch.setattr(time, "sleep", paused.append)
    (images / "bag" / "000.png").unlink()
    read_again.retry_pauses = (0.5, 1.0, 2.0, 4.0)
    assert isinstance(read_again[0], ReadError) and paused == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_is_raised_here_without_a_trace_of_the_worker(read_again, images, workers, capfd):
    for file in (images / "boot").iterdir():
        file.unlink()
    iterator = batches(read_again, workers)
    try:
        with pytest.raises(ReadError, match="boot/00.*can no longer be read"):
            list(iterator)
    finally:
        iterator.close()
        iterator.close()
    assert "Traceback" not in capfd.readouterr().err


def test_close_ends_the_workers(read_again):
    iterator = batches(read_again, 2, 100)
    next(iterator)
    workers = list(iterator._batches._workers)
    try:
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                os.kill(worker.pid, number)
        assert next(iterator)[0].shape == (4, 1, *SIZE)  # they are not theirs to obey
    finally:
        start = time.monotonic()
        iterator.close()
    assert time.monotonic() - start < 5 and not any(worker.is_alive() for worker in workers)


def test_workers_of_a_mapped_set_see_the_same(images):
    mapped = load_image_set(images, SIZE, True)
    for one, other in zip(batches(mapped, 0), batches(mapped, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert (
        build_loader(mapped, StepSampler(mapped, 4, 0, 0, 5), 4, -1, False).loader.num_workers == 0
    )
    copy = pickle.loads(pickle.dumps(mapped))
    assert torch.equal(copy[3][0], mapped[3][0]) and copy.files == mapped.files


def test_a_dark_set_of_16_bits_is_remarked(tmp_path):
    for i in range(2):
        image = Image.new("I;16", (8, 8), 1000 + i)
        image.save(tmp_path / f"{i}.png")
    found = load_image_set(tmp_path, (8, 8), False)
    assert len(found.remarks) == 1 and "brightest pixel is at 1.5% of the range" in found.remarks[0]
    Image.new("I;16", (8, 8), 60_000).save(tmp_path / "2.png")
    assert load_image_set(tmp_path, (8, 8), False).remarks == []
