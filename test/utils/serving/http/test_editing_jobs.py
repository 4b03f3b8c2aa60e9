"""Jobs that begin with a picture, and those of weights that need one: as generate.py makes them."""

import base64
import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from http_helpers import SIDE, Served, wait_until, write_weight
from PIL import Image

from model.condition import LabelCondition, PictureCondition
from utils.devices import Precision
from utils.editing import Wishes, recover
from utils.generation import ImageGenerator, Sampling
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint
from utils.serving.jobs import Client
from utils.serving.pictures import one_at_a_time
from utils.serving.weights import LEAST_SECONDS_BETWEEN_SCANS

ANYONE = Client("")
CPU = Precision(torch.float32, torch.device("cpu"))
LABELS = [0, 3, 9]
STEPS = 6
CHANCE = np.random.RandomState(0)
PHOTO = CHANCE.randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[2:6, 3:] = 255
MAPS = [CHANCE.choice(LABELS, (SIDE, SIDE)).astype(np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weight(folder / "tiny.pt")
    write_weight(folder / "maps.pt", condition=LabelCondition(LABELS))
    write_weight(folder / "sketches.pt", classes=(), mode="L", condition=PictureCondition(1))
    write_weight(folder / "pairs.pt", joint=LABELS)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path):
    with Served(folder) as server:
        yield server


def file_of(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def sent(pixels: np.ndarray) -> str:
    return base64.b64encode(file_of(pixels)).decode()


def done(server: Served, **question: Any) -> tuple[dict, np.ndarray]:
    """A completed job, and its images (n,H,W,C)."""
    with server.client() as client:
        id = server.post_job(client, **question)
        wait_until(lambda: client.get(f"/v1/jobs/{id}").json()["finished"] is not None)
        job = client.get(f"/v1/jobs/{id}").json()
        assert job["status"] == "completed", job
        files = [client.get(image["url"]).content for image in job["result"]["images"]]
    return job, np.stack([np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files])


def refused(server: Served, status: int = 400, **question: Any) -> dict:
    answer = httpx.post(f"{server.url}/v1/jobs", json=question)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def expected(
    folder: Path,
    wishes: Wishes,
    seeds: list[int],
    sampler: str = "ddim",
    name: str = "tiny",
    conditions: list[np.ndarray] | None = None,
    cfg_scale: float = 1.5,
    size: tuple[int, int] = (SIDE, SIDE),
    label: int | None = None,
) -> np.ndarray:
    """Those of generate.py, each made alone; of one class, or of each in turn."""
    checkpoint = Checkpoint.read(folder / f"{name}.pt")
    sampling = Sampling(sampler, STEPS, cfg_scale=cfg_scale)
    generator = ImageGenerator.from_checkpoint(checkpoint, sampling, CPU, size)
    edit = wishes.edit(size, generator.channels, seeds[0], len(seeds))
    classes = len(checkpoint.class_names)
    images = []
    for place, seed in enumerate(seeds):
        condition = None
        if conditions is not None:
            chosen = conditions[place % len(conditions)]
            condition = torch.from_numpy(chosen.copy())[None, None]
        labels = [place % classes if label is None else label] if classes else None
        images.append(generator.images([seed], labels, edit=edit, conditions=condition)[0])
    return torch.stack(images).permute(0, 2, 3, 1).numpy().astype(int)


# --- What images begin with ---


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "plms", "dpmpp2m", "unipc"])
def test_image_to_image(server, folder, sampler):
    question = {"weight": "tiny", "num_images": 3, "seed": 5, "sample": sampler}
    question |= {"sample_steps": STEPS, "init_image": sent(PHOTO), "strength": 0.5}
    job, images = done(server, **question)
    wishes = Wishes(init_image=file_of(PHOTO), strength=0.5)
    wanted = expected(folder, wishes, [5, 6, 7], sampler)
    assert np.abs(images - wanted).max() <= 1
    assert job["step"] == job["steps"] < STEPS
    assert job["request"]["pictures"] == ["init_image"] and job["request"]["strength"] == 0.5


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp2m"])
def test_filling_in(server, folder, sampler):
    question = {"weight": "tiny", "num_images": 3, "seed": 2, "sample": sampler}
    question |= {"sample_steps": STEPS, "init_image": sent(PHOTO), "mask": sent(MASK), "repeats": 3}
    job, images = done(server, **question)
    wishes = Wishes(init_image=file_of(PHOTO), mask=file_of(MASK), repeats=3)
    wanted = expected(folder, wishes, [2, 3, 4], sampler)
    assert np.abs(images - wanted).max() <= 1
    for image in images:
        assert np.array_equal(image[MASK == 0], PHOTO[MASK == 0])
    assert np.abs(images[0] - images[1])[MASK > 0].max() > 1
    assert job["step"] == job["steps"] == (STEPS - 1) * 3 + 1


def test_jobs_of_all_kinds_share_the_network_s_calls(folder):
    """Each image comes out as it would alone, whatever else is under way."""
    common = {"weight": "tiny", "num_images": 2, "sample_steps": STEPS, "sample": "ddim"}
    filled = {"init_image": sent(PHOTO), "mask": sent(MASK), "repeats": 2, "strength": 0.7}
    questions = [
        (filled, Wishes(file_of(PHOTO), 0.7, file_of(MASK), 2)),
        ({"init_image": sent(PHOTO)}, Wishes(file_of(PHOTO))),
        ({"interpolate": [3, 8], "class_name": "cat"}, Wishes(interpolate=(3, 8))),
        ({}, Wishes()),
    ]
    with Served(folder, slow=0.02) as server, server.client() as client:
        ids = [
            server.post_job(client, **common, **more, seed=10 * place)
            for place, (more, _) in enumerate(questions)
        ]
        for place, id in enumerate(ids):
            wait_until(lambda id=id: client.get(f"/v1/jobs/{id}").json()["finished"] is not None)
            job = client.get(f"/v1/jobs/{id}").json()
            files = [client.get(image["url"]).content for image in job["result"]["images"]]
            images = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
            more, wishes = questions[place]
            label = 0 if "class_name" in more else None
            seeds = [10 * place, 10 * place + 1]
            wanted = expected(folder, wishes, seeds, label=label)
            assert np.abs(images.astype(int) - wanted).max() <= 1
        statistics = server.engine.statistics
        assert statistics.rows > 1.5 * statistics.network_calls


def test_a_finished_job_keeps_no_pictures(server):
    question = {"weight": "maps", "sample_steps": 2, "condition": sent(MAPS[0])}
    job, _ = done(server, **question, init_image=sent(PHOTO))
    (kept,) = [each for each in server.engine.jobs.all_of(ANYONE) if each.id == job["id"]]
    request = kept.request
    assert request.edit is None and request.conditions is None
    assert request.wishes.init_image == b"" and request.condition_count == 1
    assert job["request"]["pictures"] == ["init_image"] and job["request"]["conditions"] == 1


def test_a_weight_that_was_saved_again_is_used(folder, tmp_path):
    """As while its run goes on; nobody asks for the list of weights in between."""
    for name in ("a", "b"):
        write_weight(tmp_path / "served" / name / "ema_last.pt")
    question = {"num_images": 1, "seed": 1, "sample_steps": 2}
    with Served(tmp_path / "served") as server:
        before, first = done(server, weight="a", **question)
        checkpoint = Checkpoint.read(tmp_path / "served/a/ema_last.pt")
        assert checkpoint.ema is not None
        checkpoint.ema = {name: 1.5 * weight for name, weight in checkpoint.ema.items()}
        save_checkpoint(checkpoint.to_dict(), tmp_path / "served/a/ema_last.pt")
        time.sleep(LEAST_SECONDS_BETWEEN_SCANS)
        _, second = done(server, weight="a", **question)
        generator = ImageGenerator.from_checkpoint(
            checkpoint, Sampling("ddim", 2, cfg_scale=1.5), CPU
        )
        wanted = generator.images([1], [0])[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(second[0] - wanted).max() <= 1 < np.abs(first[0] - second[0]).max()
        # and the newest run is the one that is taken where none is named
        os.utime(tmp_path / "served/b/ema_last.pt", (time.time() + 9, time.time() + 9))
        time.sleep(LEAST_SECONDS_BETWEEN_SCANS)
        assert done(server, **question)[0]["request"]["weight"] == "b"


def test_a_plain_job_does_not_wait_for_somebody_s_picture(server):
    with one_at_a_time:  # as while one is decoded
        begun = time.monotonic()
        answer = httpx.post(f"{server.url}/v1/jobs", json={"weight": "tiny", "sample_steps": 2})
        assert answer.status_code == 202 and time.monotonic() - begun < 5
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_few_repeats_of_a_short_way_are_few_calls(server):
    """Half of 6 steps twice, and not 6 twice: what counts is what is made."""
    question = {"weight": "tiny", "sample": "ddim", "sample_steps": STEPS, "strength": 0.5}
    question |= {"init_image": sent(PHOTO), "mask": sent(MASK), "repeats": 2}
    job, _ = done(server, **question)
    assert job["steps"] == 5


def test_outpainting(server, folder):
    question = {"weight": "tiny", "num_images": 2, "seed": 1, "sample": "ddim"}
    question |= {"sample_steps": STEPS, "init_image": sent(PHOTO), "outpaint": [2, 4, 0, 4]}
    job, images = done(server, **question)
    wishes = Wishes(init_image=file_of(PHOTO), outpaint=(2, 4, 0, 4))
    size = wishes.size((SIDE, SIDE), 2)
    assert size == (SIDE + 2, SIDE + 8) and job["request"]["image_size"] == list(size)
    assert np.abs(images - expected(folder, wishes, [1, 2], size=size)).max() <= 1
    for image in images:
        assert np.array_equal(image[2:, 4 : 4 + SIDE], PHOTO)


def test_inversion(server, folder):
    question = {"weight": "tiny", "seed": 0, "sample": "ddim", "sample_steps": STEPS}
    question |= {"class_name": "cat", "cfg_scale": 1.0, "invert": sent(PHOTO)}
    job, images = done(server, **question)
    checkpoint = Checkpoint.read(folder / "tiny.pt")
    generator = ImageGenerator.from_checkpoint(checkpoint, Sampling("ddim", STEPS), CPU)
    edit = Wishes(invert=file_of(PHOTO)).edit((SIDE, SIDE), 3, 0, 1)
    from_noise, error = recover(generator, edit, 0, lambda: None)
    again = generator.images([0], [0], edit=from_noise)[0].permute(1, 2, 0).numpy()
    assert np.abs(images[0] - again.astype(int)).max() <= 1
    assert abs(job["result"]["images"][0]["inversion_error"] - error) < 2e-3
    assert job["steps"] == 6 * STEPS


# --- What steers them ---


@pytest.mark.parametrize("cfg_scale", [0, 1, 3])
def test_label_maps(server, folder, cfg_scale):
    question = {"weight": "maps", "num_images": 3, "seed": 4, "sample": "ddim"}
    question |= {"sample_steps": STEPS, "cfg_scale": cfg_scale}
    job, images = done(server, **question, condition=[sent(each) for each in MAPS])
    wanted = expected(
        folder, Wishes(), [4, 5, 6], name="maps", conditions=MAPS, cfg_scale=cfg_scale
    )
    assert np.abs(images - wanted).max() <= 1
    assert job["request"]["conditions"] == 2
    with server.client() as client:
        first = client.get(job["result"]["images"][2]["url"]).content
    assert Image.open(io.BytesIO(first)).text["condition"] == "number 0"


def test_a_picture_alone_and_with_a_beginning(server, folder):
    """A photograph as a data URL, without classes, in both roles."""
    grey = PHOTO[..., 0]
    question = {"weight": "sketches", "num_images": 2, "seed": 4, "sample": "ddim"}
    question |= {"sample_steps": STEPS, "condition": f"data:image/png;base64,{sent(grey)}"}
    for more, wishes in (({}, Wishes()), ({"init_image": sent(grey)}, Wishes(file_of(grey)))):
        _, images = done(server, **question, **more)
        wanted = expected(folder, wishes, [4, 5], name="sketches", conditions=[grey])
        assert np.abs(images - wanted[..., 0]).max() <= 1


def test_images_with_their_masks(server):
    job, images = done(server, weight="pairs", num_images=2, seed=1, sample_steps=STEPS)
    assert images.shape == (2, SIDE, SIDE, 3)
    with server.client() as client:
        masks = [client.get(image["mask_url"]) for image in job["result"]["images"]]
        assert client.get(masks[0].url.path.replace("/0", "/2")).status_code == 404
    maps = [np.asarray(Image.open(io.BytesIO(mask.content))) for mask in masks]
    assert all(np.isin(each, LABELS).all() for each in maps)
    assert not np.array_equal(*maps)
    other, _ = done(server, weight="tiny", sample_steps=2)
    assert other["result"]["images"][0]["mask_url"] is None
    missing = httpx.get(f"{server.url}/v1/jobs/{other['id']}/masks/0")
    assert missing.status_code == 404


def test_capabilities_say_what_a_weight_needs(server):
    answer = httpx.get(f"{server.url}/v1/capabilities").json()
    weights = {weight["name"]: weight for weight in answer["weights"]}
    assert weights["tiny"]["condition"] is None and not weights["tiny"]["masks"]
    assert weights["maps"]["condition"] == {"kind": "labels", "labels": LABELS, "mode": "P"}
    assert weights["sketches"]["condition"] == {"kind": "picture", "labels": None, "mode": "L"}
    assert weights["pairs"]["masks"]
    assert answer["default_weight"] not in ("maps", "sketches")


# --- What cannot be done ---


def bomb(side: int) -> str:
    """A small PNG file whose head speaks of so many pixels in each direction."""
    data = bytearray(file_of(PHOTO))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return base64.b64encode(bytes(data)).decode()


@pytest.mark.parametrize(
    ("question", "param", "sentence"),
    [
        ({"mask": "{mask}"}, "mask", "mask belongs to init_image"),
        ({"strength": 0.5}, "strength", "belongs to init_image"),
        ({"init_image": "{photo}", "interpolate": [1, 2]}, "interpolate", "choose one"),
        ({"init_image": "{photo}", "repeats": 2}, "repeats", "belongs to mask or outpaint"),
        ({"init_image": "no base64"}, "init_image", "no base64"),
        ({"init_image": "aGFsbG8="}, "init_image", "known are PNG"),
        ({"init_image": bomb(7_000)}, "init_image", "33,554,432 are the most"),
        ({"init_image": bomb(40_000)}, "init_image", "33,554,432 are the most"),
        ({"init_image": "{cut}"}, "init_image", "init_image cannot be read"),
        ({"init_image": "{photo}", "mask": "{black}"}, "mask", "white nowhere"),
        ({"init_image": "{photo}", "mask": "{mask}", "sample": "unipc"}, "mask", "choose sample"),
        ({"init_image": "{photo}", "outpaint": [1, 0, 0, 0]}, "outpaint", "with these borders"),
        ({"init_image": "{photo}", "outpaint": [2000, 0, 0, 0]}, "outpaint", "1024 is the most"),
        ({"invert": "{photo}", "sample": "ddpm", "class_name": "cat"}, "invert", "sample ddim"),
        ({"invert": "{photo}", "sample": "ddim"}, "class_name", "choose it with class_name"),
        ({"interpolate": [3, 8]}, "class_name", "images between two seeds have one class"),
        ({"interpolate": [3, 8], "class_name": "-1"}, "class_name", "have one class"),
        ({"interpolate": [3, 8], "class_name": "cat", "sample": "ddpm"}, "interpolate",
         "adds no noise"),
        ({"init_image": "{photo}", "outpaint": [0, 0, 0, 0]}, "outpaint", "has no border"),
        ({"init_image": "{photo}", "mask": "{mask}", "sample": "ddim", "sample_steps": 100,
          "repeats": 11, "weight": "long"}, "repeats", "1090 network calls"),
        ({"invert": "{photo}", "sample": "ddim", "sample_steps": 100, "class_name": "cat",
          "weight": "long"}, "invert", "600 network calls"),
        ({"weight": "maps"}, "condition", "send some"),
        ({"weight": "tiny", "condition": "{mask}"}, "condition", "trained without conditions"),
        ({"weight": "maps", "condition": "{mask}"}, "condition", "learned the labels 0, 3, 9"),
        ({"weight": "maps", "condition": "{photo}"}, "condition", "no label map"),
        ({"weight": "maps", "condition": ["{map}", "{map}"]}, "condition", "more than 1 images"),
        ({"weight": "pairs", "init_image": "{photo}"}, "init_image", "begin with no image"),
    ],
)  # fmt: skip
def test_refusals(folder, server, question, param, sentence):
    pictures = {"photo": PHOTO, "mask": MASK, "black": np.zeros_like(MASK), "map": MAPS[0]}
    texts = {name: sent(pixels) for name, pixels in pictures.items()}
    texts["cut"] = base64.b64encode(file_of(PHOTO)[:60]).decode()

    def filled(value):
        if isinstance(value, list):
            return [filled(each) for each in value]
        is_name = isinstance(value, str) and value.startswith("{")
        return texts[value.strip("{}")] if is_name else value

    asked = {"weight": "tiny", **{name: filled(value) for name, value in question.items()}}
    if asked["weight"] == "long":
        asked["weight"] = "tiny"
        with Served(folder, limits=server.services.limits.__class__(max_steps=500)) as short:
            error = refused(short, **asked)
    else:
        error = refused(server, **asked)
    assert error["param"] == param and sentence in error["message"], error


def test_the_other_apis_say_what_is_missing(server):
    with server.client() as client:
        answer = client.post("/v1/images/generations", json={"model": "maps", "prompt": ""})
        assert answer.status_code == 400 and "condition" in answer.json()["error"]["message"]
        question = {"weight_path": "maps.pt", "result_path": "x"}
        answer = client.post("/api/generate/df", json=question).json()
        assert answer["code"] == 400 and "condition" in answer["msg"]
