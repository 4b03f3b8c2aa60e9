"""Weights from files, as train.py writes them: the server's images are those of generate.py."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image
from serving_helpers import ANYONE, CPU, wait_until, weight_of
from upscaling_helpers import write_upscaler

from model.samplers import SAMPLERS
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint
from utils.serving.engine import Engine
from utils.serving.limits import Limits
from utils.serving.refusal import Refusal
from utils.serving.requests import Asked, resolve, usual_steps
from utils.serving.weights import WeightStore

OTHERS = sorted(SAMPLERS.keys() - {"ddpm", "unipc"})
AUTOENCODER = ["--block_out_channels", "8,8", "--norm_num_groups", "4", "--image_size", "12"]
DIFFUSION = ["--channels", "8", "--channel_mult", "1", "--head_channels", "8"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(CPU, Limits())
    engine.start()
    yield engine
    engine.stop()


def served(engine: Engine, folder: Path, **asked: object) -> list[bytes]:
    """The images of a job, as files."""
    request = resolve(Asked(**asked), WeightStore([folder]), engine.limits)
    job = engine.submit(request, ANYONE)
    wait_until(lambda: job.has_ended)
    assert job.status == "completed", job.error
    return [engine.image(job, place) for place in range(request.count)]


def check(images: list[bytes], folder: Path, tmp_path: Path) -> None:
    """The images, and what they say of themselves, are those of the files in a folder."""
    for place, data in enumerate(images):
        (tmp_path / "served.png").write_bytes(data)
        with Image.open(tmp_path / "served.png") as ours:
            with Image.open(folder / f"{place:05d}.png") as theirs:
                difference = np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)
                assert ours.size == theirs.size and np.abs(difference).max() <= 1
                assert ours.text == theirs.text


@pytest.mark.parametrize(
    "sampler",
    ["ddpm", "unipc", *(pytest.param(name, marks=pytest.mark.fault) for name in OTHERS)],
)
def test_pixels_and_upscaled(engine, images, tmp_path, script, sampler):
    script("train", *TINY, "--dataset_path", images, "--run_name", "run", "--epochs", 1)
    results = tmp_path / "results"
    upscaler = write_upscaler(tmp_path / "results" / "up.pt", channels=1)
    how = ["--weight_path", results / "run" / "ema_last.pt", "--num_images", 3, "--seed", 5]
    how += ["--sample", sampler, "--sample_steps", 4, "--upscale", upscaler]
    script("generate", *how)
    ours = served(
        engine,
        results,
        weight="run",
        num_images=3,
        seed=5,
        sample=sampler,
        sample_steps=4,
        upscale="up",
    )
    check(ours, results / "generated", tmp_path)


def test_weights_with_a_guide(engine, images, tmp_path, script):
    """Led by it unless other guidance is asked for; the kinds of jobs share a model, not a call."""
    options = ["--run_name", "run", "--epochs", 3, "--lr", 0.01, "--guide_share", 0.4]
    script("train", *TINY, "--dataset_path", images, *options)
    results = tmp_path / "results"
    how = ["--weight_path", results / "run" / "ema_last.pt", "--num_images", 2, "--seed", 5]
    questions = [
        {},
        {"cfg_scale": 2.0},
        {"guide_scale": 3.0},
        {"cfg_scale": 2.0, "guide_scale": 2.0},
        {"guide_labels": False},
        {"guide_scale": 3.0, "guide_labels": False},
    ]
    store = WeightStore([results])
    common = {"weight": "run", "num_images": 2, "seed": 5, "sample_steps": 4}
    jobs = [
        engine.submit(resolve(Asked(**common, **each), store, Limits()), ANYONE)
        for each in questions
    ]
    wait_until(lambda: all(job.has_ended for job in jobs))
    for number, (job, asked) in enumerate(zip(jobs, questions, strict=True)):
        assert job.status == "completed", job.error
        options = [word for name, value in asked.items() for word in (f"--{name}", value)]
        script("generate", *how, "--sample_steps", 4, *options, "--generate_name", f"g{number}")
        check([engine.image(job, place) for place in range(2)], results / f"g{number}", tmp_path)
    first = jobs[0].request.to_dict()
    assert (first["cfg_scale"], first["guide_scale"]) == (1.0, 1.5)
    again = resolve(Asked(**{**common, "cfg_scale": 1.0, "guide_scale": 1.5}), store, Limits())
    assert again == jobs[0].request
    with pytest.raises(Refusal, match="guide_labels is about a guide"):
        resolve(Asked(**common, cfg_scale=2.0, guide_labels=False), store, Limits())
    # What was found to be best, in the file, is what it takes where nobody says how
    file = results / "run" / "ema_last.pt"
    checkpoint = Checkpoint.read(file)
    best = {"cfg_scale": 1.0, "guide_scale": 3.0, "guide_labels": False}
    checkpoint.config["sampling"]["recommended_guidance"] = best
    save_checkpoint(checkpoint.to_dict(), file)
    found = resolve(Asked(**common), WeightStore([results]), Limits()).to_dict()
    assert {name: found[name] for name in best} == best


def test_a_guide_that_needs_labels(images, tmp_path, script):
    options = ["--run_name", "run", "--epochs", 3, "--guide_share", 0.4, "--label_drop", 0]
    script("train", *TINY, "--dataset_path", images, *options, "--cfg_scale", 1)
    store = WeightStore([tmp_path / "results"])
    assert resolve(Asked(weight="run"), store, Limits()).sampling.guide_labels
    with pytest.raises(Refusal, match="its guide needs labels"):
        resolve(Asked(weight="run", guide_labels=False), store, Limits())


def test_a_guide_that_a_weight_does_not_hold(images, tmp_path, script):
    script("train", *TINY, "--dataset_path", images, "--run_name", "run", "--epochs", 1)
    store = WeightStore([tmp_path / "results"])
    with pytest.raises(Refusal, match="holds no guide"):
        resolve(Asked(weight="run", guide_scale=2.0), store, Limits())
    with pytest.raises(Refusal, match="guide_scale is 0 to 100"):
        resolve(Asked(weight="run", guide_scale=float("nan")), store, Limits())


def test_a_sampler_of_another_version_is_described_without_steps():
    weight = weight_of()
    assert usual_steps(weight) == 50
    assert usual_steps(replace(weight, sampler="of the future")) is None
    assert usual_steps(replace(weight, sample_steps=7)) == 7


@pytest.mark.parametrize("header", ["file,labels", "file,labels,age"])
def test_several_labels(engine, images, tmp_path, script, header):
    """Beside a request for one label, and one for the images of all in turn."""
    numbers = [",3", ",4", ","] if "age" in header else ["", "", ""]
    files = sorted(file.relative_to(images) for file in images.rglob("*.png"))
    rows = [
        f'{file},"{file.parent.name},{"new" if number % 2 else "old"}"{numbers[number % 3]}'
        for number, file in enumerate(files)
    ]
    (images / "labels.csv").write_text("\n".join([header, *rows]))
    script("train", *TINY, "--dataset_path", images, "--run_name", "run", "--epochs", 1)
    results = tmp_path / "results"
    how = ["--weight_path", results / "run" / "ema_last.pt", "--num_images", 2, "--seed", 5]
    how += ["--sample_steps", 4]
    first = str(files[0].parent.name)
    asked = {"weight": "run", "num_images": 2, "seed": 5, "sample_steps": 4}
    requests = [{"class_name": f"{first},new"}, {"class_name": first}, {}]
    jobs = [
        engine.submit(resolve(Asked(**asked, **each), WeightStore([results]), Limits()), ANYONE)
        for each in requests
    ]
    wait_until(lambda: all(job.has_ended for job in jobs))
    for number, (job, each) in enumerate(zip(jobs, requests, strict=True)):
        assert job.status == "completed", job.error
        options = ["--class_name", each["class_name"]] if each else []
        script("generate", *how, *options, "--generate_name", f"made{number}")
        ours = [engine.image(job, place) for place in range(2)]
        check(ours, results / f"made{number}", tmp_path)


def test_latents(engine, images, tmp_path, script):
    results = tmp_path / "results"
    data = ["--dataset_path", images, "--val_fraction", "0", "--epochs", 1, "--vis", "False"]
    script("train_autoencoder", *AUTOENCODER, *data, "--run_name", "ae")
    encoder = ["--autoencoder_path", results / "ae" / "ema_last.pt"]
    script("train", *DIFFUSION, *data, *encoder, "--image_size", 12, "--run_name", "latent")
    how = ["--weight_path", results / "latent" / "ema_last.pt", "--num_images", 3]
    script("generate", *how, "--sample", "plms", "--sample_steps", 5)
    ours = served(
        engine, results, weight="latent", num_images=3, seed=0, sample="plms", sample_steps=5
    )
    check(ours, results / "generated", tmp_path)


def test_names(images, tmp_path, script):
    script("train", *TINY, "--dataset_path", images, "--run_name", "run", "--epochs", 1)
    results = tmp_path / "results"
    contents = (results / "run" / "ema_last.pt").read_bytes()
    (results / "run" / "ckpt_0.pt").write_bytes(contents)
    (results / "alone.pt").write_bytes(contents)
    (results / "broken.pt").write_bytes(contents[: len(contents) // 2])
    (results / "notes.txt").write_text("no weights")
    outside = tmp_path / "outside.pt"
    outside.write_bytes(contents)
    (results / "link.pt").symlink_to(outside)
    store = WeightStore([results])
    assert [weight.name for weight in store.all()] == ["alone", "run", "run:ckpt_0"]
    assert store.find("run:ema_last") is store.find("run")
    assert store.default().name == "run"
    # What comes, changes and goes is noticed.
    (results / "late.pt").write_bytes(contents)
    (results / "alone.pt").unlink()
    store.scan()
    assert [weight.name for weight in store.all()] == ["late", "run", "run:ckpt_0"]
    # Two of one name: the second one's folder tells them apart, also at the next look.
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "late.pt").write_bytes(contents)
    both = WeightStore([results, tmp_path / "more"])
    both.scan()
    assert [weight.name for weight in both.all()] == ["late", "more:late", "run", "run:ckpt_0"]
    assert both.find("late").path.parent == results
    # A name does not depend on what was there before.
    (results / "late.pt").unlink()
    both.scan()
    assert [weight.name for weight in both.all()] == ["late", "run", "run:ckpt_0"]


def test_metadata_is_read_without_the_numbers(images, tmp_path, script, monkeypatch):
    script("train", *TINY, "--dataset_path", images, "--run_name", "run", "--epochs", 1)
    devices = set()
    load = torch.load

    def loading(*args, **kwargs):
        devices.add(kwargs["map_location"])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", loading)
    weight = WeightStore([tmp_path / "results"]).find("run")
    assert devices == {"meta"}
    assert weight.classes == ("bag", "boot", "trouser") and weight.image_size == (8, 8)
