"""The article's service, as its clients use it."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from http_helpers import CLASSES, SIDE, Served, write_weight, write_weights
from PIL import Image
from serving_helpers import CPU

from utils.serving import enlarging
from utils.serving.enlarging import Enlarger
from utils.serving.limits import Limits
from utils.serving.refusal import Refusal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = write_weights(tmp_path_factory.mktemp("weights"))
    write_weight(folder / "foxes" / "ema_last.pt")
    return folder


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    with Served(folder) as server:
        yield server


def question(**changes) -> dict:
    """What the article's clients send."""
    usual = {
        "sample": "ddim",
        "image_size": SIDE,
        "num_images": 1,
        "type": "base64",
        "weight_path": "/your/path/weight/tiny.pt",
        "result_path": "/your/path/results",
        "latent": False,
        "autoencoder_ckpt": None,
        "sample_steps": 3,
        "seed": 1,
    }
    return {**usual, **changes}


def ask(server: Served, path: str = "/api/generate/df", **changes) -> httpx.Response:
    body = question(**changes) if path.endswith("df") else changes
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.json()["code"] == answer.status_code
    return answer


def pictures(answer: httpx.Response) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text
    data = json.loads(answer.json()["data"])
    return [Image.open(io.BytesIO(base64.b64decode(each["image"]))) for each in data["image"]]


def test_its_clients_get_what_they_expect(server):
    answer = ask(server)
    assert answer.json()["msg"] == "success!"
    data = json.loads(answer.json()["data"])
    assert data["type"] == "base64" and data["image"][0]["type"] == "base64"
    image = Image.open(io.BytesIO(base64.b64decode(data["image"][0]["image"])))
    assert image.format == "PNG" and image.size == (SIDE, SIDE)
    assert data["image"][0]["image_id"]


def test_who_waits_for_an_enlargement_keeps_nobody_from_images(folder, monkeypatch):
    """Eight may wait; asyncio's own threads are fewer on a small machine."""
    goes_on = threading.Event()
    enlarge = Enlarger._enlarged

    def slow(self, *args):
        goes_on.wait(60)
        return enlarge(self, *args)

    monkeypatch.setattr(Enlarger, "_enlarged", slow)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    with Served(folder) as server, ThreadPoolExecutor(10) as clients:
        address = json.loads(ask(server, type="url").json()["data"])["image"][0]["image"]
        sent = [clients.submit(ask, server, "/api/generate/sr", image=image) for _ in range(10)]
        first = next(as_completed(sent, 60))
        assert first.result().status_code == 429  # eight wait, and nobody else may
        begun = time.monotonic()
        httpx.get(address).raise_for_status()
        assert time.monotonic() - begun < 5
        goes_on.set()
        assert sorted(each.result().status_code for each in sent) == [200] * 8 + [429] * 2


def test_an_address_leads_to_the_same_image(server):
    data = json.loads(ask(server, type="url").json()["data"])
    assert data["type"] == "url"
    fetched = httpx.get(data["image"][0]["image"]).raise_for_status()
    assert fetched.headers["content-type"] == "image/png"
    same = pictures(ask(server))[0]
    assert Image.open(io.BytesIO(fetched.content)).tobytes() == same.tobytes()


def test_class_names_are_honoured(server):
    assert [image.text["class"] for image in pictures(ask(server, class_name="dog"))] == ["dog"]
    assert [image.text["class"] for image in pictures(ask(server, class_name=2))] == ["red fox"]
    each = pictures(ask(server, class_name=-1))
    assert [image.text["class"] for image in each] == list(CLASSES)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("tiny", "tiny.pt"),
        ("C:\\weights\\tiny.pt", "tiny.pt"),
        ("results/foxes/ema_last.pt", "ema_last.pt"),
        ("foxes", "ema_last.pt"),
    ],
)
def test_weights_are_known_by_the_last_part(server, path, file):
    assert pictures(ask(server, weight_path=path))[0].text["weights"] == file


def test_nothing_is_written_to_result_path(server, tmp_path):
    pictures(ask(server, result_path=str(tmp_path / "new"), type="base64"))
    assert not any(tmp_path.iterdir())


def test_sizes_and_counts(server):
    images = pictures(ask(server, image_size=[8, 16], num_images=2))
    assert [image.size for image in images] == [(16, 8)] * 2
    assert len(pictures(ask(server, num_images=0))) == 1


def test_raw_weights_must_be_there(server):
    assert pictures(ask(server, use_ema=True))
    answer = ask(server, use_ema=False)
    assert answer.status_code == 400 and "use_ema" in answer.json()["msg"]


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"weight_path": "/etc/passwd"}, 404, "tiny"),
        ({"weight_path": "../../tiny/"}, 200, "success"),
        ({"weight_path": "///"}, 404, "weight_path"),
        ({"weight_path": "twice.pt"}, 400, "diffusion"),
        ({"weight_path": None}, 400, "weight_path"),
        ({"sample": "euler"}, 400, "sample"),
        ({"image_size": 9}, 400, "8,8 and 10,10"),
        ({"image_size": 10_000}, 400, "image_size"),
        ({"num_images": 1000}, 400, "num_images"),
        ({"num_images": "two"}, 400, "num_images"),
        ({"type": "file"}, 400, "type"),
        ({"class_name": "house"}, 400, "red fox"),
    ],
)
def test_refusals_have_the_articles_form(server, changes, status, word):
    answer = ask(server, **changes)
    assert answer.status_code == status and word in answer.json()["msg"]
    if status != 200:
        assert answer.json()["data"] is None


def test_a_full_queue_says_when_to_come_back(folder):
    with Served(folder, slow=0.05, limits=Limits(max_queue=1)) as server, server.client() as client:
        job = server.post_job(client, sample_steps=100)
        answer = ask(server)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        client.post(f"/v1/jobs/{job}/cancel")


def test_the_greeting_is_for_who_asks_for_json(server):
    answer = httpx.get(server.url, headers={"Accept": "application/json"})
    assert answer.json() == "Hello, IDDM!"
    browser = httpx.get(server.url, headers={"Accept": "text/html,application/json"})
    assert "Hello" not in browser.text


# --- Enlarging ---


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "PNG"), ("RGBA", "WEBP")])
def test_an_image_is_enlarged(server, mode, kind):
    noise = np.random.default_rng(0).integers(0, 255, (6, 4, len(mode)), dtype=np.uint8)
    image = Image.fromarray(noise.squeeze(), mode)
    answer = ask(server, "/api/generate/sr", image=encoded(image, kind), weight_path="x/twice.pt")
    large = pictures(answer)[0]
    assert large.size == (8, 12) and large.mode == mode and large.format == "PNG"


@pytest.mark.parametrize("is_served", [True, False])
def test_an_end_does_not_wait_for_enlargements(monkeypatch, is_served):
    """Neither for one that is being made nor for those that wait."""
    ending = threading.Event()
    enlarger = Enlarger(CPU, Limits(), ending.is_set)
    monkeypatch.setattr(enlarger, "_upscaler", lambda weight: SimpleNamespace(scale=2))
    monkeypatch.setattr(enlarging, "plan_output", lambda *_: None)

    def write_upscaled(source, upscaler, output, after_rows):
        while True:
            ending.set()
            after_rows(1)

    monkeypatch.setattr(enlarging, "write_upscaled", write_upscaled)
    if not is_served:
        enlarger._lock.acquire()
        ending.set()
    data = base64.b64decode(encoded(Image.new("L", (4, 4))))
    with pytest.raises(Refusal) as caught:
        enlarger.enlarge(data, None)
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"image": "no base64!"}, 400),
        ({"image": "ä"}, 400),
        ({"image": base64.b64encode(b"no image").decode()}, 400),
        ({"image": encoded(Image.new("L", (2000, 2)))}, 400),
        ({"image": encoded(Image.new("L", (500, 500)))[:200]}, 400),
        ({"image": encoded(Image.new("L", (4, 4))), "weight_path": "tiny"}, 400),
        ({"image": encoded(Image.new("L", (4, 4))), "weight_path": "nothing"}, 404),
        ({}, 400),
    ],
)
def test_what_cannot_be_enlarged_is_refused(server, changes, status):
    answer = ask(server, "/api/generate/sr", **changes)
    assert answer.status_code == status, answer.text
