"""An image from the server is that of generate.py: in any batch, with any neighbours."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from serving_helpers import CLASSES, CPU, NOISE_STEPS, PROCESS, SIDE, Bench
from torch import Tensor

from model.codecs import PixelCodec
from model.samplers import SAMPLERS
from utils.editing import Wishes
from utils.generation import ImageGenerator
from utils.serving import lane
from utils.serving.jobs import Job

TOLERANCE = 1e-4
ALL_SAMPLERS = tuple(SAMPLERS)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.stop()


@pytest.fixture
def double_bench() -> Iterator[Bench]:
    torch.set_default_dtype(torch.float64)
    bench = Bench()
    yield bench
    bench.engine.stop()
    torch.set_default_dtype(torch.float32)


def with_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Network calls take so many rows."""
    monkeypatch.setattr(lane, "measured_budget", lambda timed_call: rows)


def references(bench: Bench, job: Job) -> Tensor:
    """The images of a job, each made alone by what generate.py uses, before they are rounded."""
    request = job.request
    images = []
    for seed, label in zip(request.seeds, request.labels, strict=True):
        sampler = request.sampling.build(PROCESS, "cpu")
        edit = bench.edits[job.id]
        if edit is not None:
            sampler = edit.sampler_of(sampler)
        generator = ImageGenerator(
            bench.network.network,
            sampler,
            PixelCodec(),
            request.image_size,
            1,
            CPU,
            request.sampling.cfg_scale,
        )
        network = bench.network.network
        network.num_classes = len(CLASSES)
        denoised = list(generator.denoise([seed], [label], edit))[-1]
        images.append(sampler.finished_images(denoised.trajectory)[0])
    return torch.stack(images)


def check(bench: Bench, job: Job, tolerance: float = TOLERANCE) -> None:
    """All images of a job are what they should be, before and after rounding."""
    assert job.status == "completed", job.error
    expected = references(bench, job)
    decoded = torch.stack(bench.codec.decoded)
    for place, image in enumerate(expected):
        difference = (decoded - image).abs().flatten(1).amax(1)
        assert difference.min() <= tolerance
        picture = Image.open(io.BytesIO(bench.engine.image(job, place)))
        pixels = PixelCodec().decode(image)
        if bench.edits[job.id] is not None:
            pixels = bench.edits[job.id].finish(pixels[None])[0]
        pixels = pixels[0].numpy().astype(int)
        assert np.abs(np.asarray(picture).astype(int) - pixels).max() <= 1
    far_apart = (expected[0] - expected[-1]).abs().max() > 100 * tolerance
    assert far_apart or len(expected) == 1  # else nothing has been compared


@pytest.mark.parametrize("sampler", ALL_SAMPLERS)
def test_alone_and_in_every_slot_of_a_batch(
    bench: Bench, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, 16)
    alone = bench.submit(num_images=1, sample=sampler, sample_steps=7, seed=1)
    bench.finish()
    check(bench, alone)
    several = bench.submit(num_images=8, sample=sampler, sample_steps=7, seed=100, cfg_scale=2)
    bench.finish()
    assert max(bench.network.rows) == 16  # 8 guided images in one call
    check(bench, several)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8])
def test_with_any_neighbours_in_calls_of_any_size(
    bench: Bench, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, rows)
    jobs = [
        bench.submit(num_images=2, sample="ddpm", sample_steps=9, seed=10, cfg_scale=1),
        bench.submit(num_images=3, sample="ddim", sample_steps=5, seed=20, cfg_scale=3),
        bench.submit(num_images=2, sample="plms", sample_steps=6, seed=30, cfg_scale=0),
        bench.submit(num_images=2, sample="plms", sample_steps=1, seed=40, class_name="boot"),
        bench.submit(num_images=1, sample="ddpm", sample_steps=4, seed=50, cfg_scale=0.5),
    ]
    bench.finish()
    assert max(bench.network.rows) <= max(rows, 2)  # a guided image needs two
    for job in jobs:
        check(bench, job)


def test_a_late_joiner_and_who_was_there_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, 16)
    late: list[Job] = []

    def join(number: int, *call: object) -> None:
        if number == 4:
            late.append(bench.submit(num_images=2, sample="plms", sample_steps=5, seed=7))

    bench.network.before_call = join
    early = bench.submit(num_images=2, sample="ddpm", sample_steps=12, seed=3)
    bench.finish()
    # 5 calls alone with 4 rows; then the joiner is there at the very next one.
    assert bench.network.rows[:6] == [4] * 5 + [8]
    check(bench, early)
    check(bench, late[0])


def test_beside_a_neighbour_that_is_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, 16)
    stays = bench.submit(num_images=2, sample="plms", sample_steps=12, seed=3)
    goes = bench.submit(num_images=2, sample="plms", sample_steps=12, seed=5)

    def cancel(number: int, *call: object) -> None:
        if number == 5:
            bench.engine.cancel(goes)

    bench.network.before_call = cancel
    bench.finish()
    assert goes.status == "cancelled"
    # The call under way had its rows; the next one has not.
    assert bench.network.rows[5:7] == [8, 4]
    check(bench, stays)


def test_beside_a_neighbour_that_fails_and_one_that_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, 32)
    trouser = CLASSES.index("trouser")

    def fail(number: int, x: Tensor, t: Tensor, labels: Tensor) -> None:
        if number >= 4 and (labels == trouser).any():
            raise RuntimeError("this label breaks the network")

    bench.network.before_call = fail
    stays = bench.submit(num_images=2, sample_steps=12, seed=3, class_name="bag")
    fails = bench.submit(num_images=2, sample_steps=12, seed=5, class_name="trouser")
    ends = bench.submit(num_images=1, sample_steps=3, seed=9, class_name="boot")
    bench.finish()
    assert fails.status == "failed" and fails.error.status == 500
    assert "label" not in fails.error.message  # what broke is for the log
    assert bench.engine.statistics.failed_calls == 1  # the others share calls again at once
    check(bench, stays)
    check(bench, ends)


def test_after_running_out_of_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with_rows(monkeypatch, 16)

    def fill_memory(number: int, x: Tensor, *rest: object) -> None:
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    bench.network.before_call = fill_memory
    job = bench.submit(num_images=4, sample="ddpm", sample_steps=6, seed=3)
    bench.finish()
    assert bench.engine.statistics.out_of_memory == 2  # 8 rows, then 4
    assert bench.engine.statistics.failed_calls == 0
    check(bench, job)


def file_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def edited_jobs(bench: Bench) -> list[Job]:
    """Jobs that begin with a picture in every way, beside one that does not."""
    photo = file_of(np.random.RandomState(0).randint(0, 256, (SIDE, SIDE)).astype(np.uint8))
    mask = file_of(np.eye(SIDE, dtype=np.uint8) * 255)
    asked = [
        ("ddpm", 9, Wishes(photo, mask=mask, repeats=3)),
        ("dpmpp2m", 8, Wishes(photo, mask=mask, strength=0.7, repeats=2)),
        ("plms", 7, Wishes(photo, strength=0.5)),
        ("ddim", 3, Wishes(invert=photo)),
        ("unipc", 5, Wishes(interpolate=(3, 8))),
        ("ddpm", 6, Wishes()),
    ]
    return [
        bench.submit(
            num_images=1 if wishes.invert else 2,  # which no seed changes
            sample=sampler,
            sample_steps=steps,
            seed=7 * i,
            wishes=wishes,
            class_name="1" if wishes.invert or wishes.interpolate else None,
        )
        for i, (sampler, steps, wishes) in enumerate(asked)
    ]


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_edited_images_with_any_neighbours(
    double_bench: Bench, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, rows)
    jobs = edited_jobs(double_bench)
    double_bench.finish()
    for job in jobs:
        check(double_bench, job, tolerance=1e-9)


def test_edited_images_after_steps_that_fail(
    double_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes images between steps is then as it was before the step."""
    with_rows(monkeypatch, 64)
    jobs = edited_jobs(double_bench)
    failed = []

    def fail_now_and_then(number: int, x: Tensor, *rest: object) -> None:
        if len(x) > 2 and number % 5 == 3:  # more than one guided image
            failed.append(number)
            double_bench.network.rows.append(0)  # the next call has another number
            raise RuntimeError("once")

    double_bench.network.before_call = fail_now_and_then
    double_bench.finish()
    assert len(failed) > 3
    for job in jobs:
        check(double_bench, job, tolerance=1e-9)


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.parametrize("sampler", ALL_SAMPLERS)
def test_jobs_of_a_thousand_steps(
    bench: Bench, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, 4)
    job = bench.submit(num_images=2, sample=sampler, sample_steps=NOISE_STEPS, seed=3, cfg_scale=1)
    bench.submit(num_images=3, sample="ddpm", sample_steps=300, seed=30, cfg_scale=1)
    bench.finish(timeout=120)
    check(bench, job)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_in_float64_to_ten_digits(
    double_bench: Bench, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(monkeypatch, rows)
    jobs = [
        double_bench.submit(num_images=2, sample=sampler, sample_steps=20, seed=seed, cfg_scale=2)
        for seed, sampler in enumerate(ALL_SAMPLERS)
    ]
    double_bench.finish()
    for job in jobs:
        check(double_bench, job, tolerance=1e-10)


def test_other_sizes_have_lanes_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with_rows(monkeypatch, 16)
    small = bench.submit(num_images=2, sample="ddim", sample_steps=6, seed=3)
    large = bench.submit(num_images=2, sample="ddim", sample_steps=6, seed=3, image_size=(12, 16))
    bench.finish()
    bench_of_small = [image for image in bench.codec.decoded if image.shape[-1] == SIDE]
    bench_of_large = [image for image in bench.codec.decoded if image.shape[-1] == 16]
    bench.codec.decoded = bench_of_small
    check(bench, small)
    bench.codec.decoded = bench_of_large
    check(bench, large)
