"""Trainings over HTTP. A stub stands in for tools/train.py."""

import asyncio
import io
import json
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from helpers import DEMO, copy_some
from PIL import Image
from training_helpers import start_by_hand, trainings_in, wait_for, wait_for_state

from utils.serving.limits import Limits

LONG = {"epochs": 100_000}
SHORT = {"epochs": 3}


class ServedWeights:
    """What the router asks of a WeightStore, for the files that are there."""

    def __init__(self, results: Path):
        self.results = results
        self.found: list[SimpleNamespace] = []

    def scan(self) -> None:
        files = sorted(self.results.glob("*/ema_*.pt"))
        self.found = [
            SimpleNamespace(name=file.parent.name, path=file, run=file.parent.name)
            for file in files
        ]

    def all(self) -> list[SimpleNamespace]:
        return self.found


@pytest.fixture
def folder(tmp_path):
    copy_some(tmp_path / "data" / "images")
    (tmp_path / "data" / "empty").mkdir()
    (tmp_path / "data" / ".hidden").mkdir()
    (tmp_path / "results").mkdir()
    return tmp_path


@pytest.fixture
def services(folder):
    with trainings_in(folder, grace=0.3) as trainings:
        weights = ServedWeights(folder / "results")
        yield SimpleNamespace(training=trainings, weights=weights, limits=Limits())


@pytest.fixture
def client(services):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from utils.serving.http.errors import add_error_handlers
    from utils.serving.http.training_api import build_router

    app = FastAPI()
    router = build_router(services)
    add_error_handlers(app, router.routes)
    app.include_router(router)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def start(client, name: str, options: dict | None = None, status: int = 202) -> dict:
    body = {"dataset": "images", "run_name": name, "options": options or SHORT}
    answer = client.post("/v1/runs", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def finished(client, services, name: str) -> dict:
    wait_for_state(services.training, name, "finished")
    return client.get(f"/v1/runs/{quote(name, safe='')}").json()


def error_of(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "/tmp" not in error["message"] and "Traceback" not in error["message"]
    return error


def test_data_folders_and_their_pictures(client):
    found = client.get("/v1/data").json()["folders"]
    assert [each["name"] for each in found] == ["empty", "images"]
    empty, images = found
    assert empty["images"] == 0 and "no images" in empty["error"]
    assert (images["images"], images["size_hint"], images["error"]) == (13, [28, 28], None)
    counts = {each["name"]: each["images"] for each in images["classes"]}
    assert counts == {"bag": 5, "boot": 4, "trouser": 4}
    answer = client.get("/v1/data/images/samples?count=5")
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.width > 5 * 90 and picture.convert("L").getextrema() == (0, 255)
    assert error_of(client.get("/v1/data/empty/samples"), 409)["code"] == "no_images"
    for name in ("none", "..", "%2e%2e", ".hidden", "images%2fbag", "%00"):
        error_of(client.get(f"/v1/data/{name}/samples"), 404)
    error_of(client.get("/v1/data/images/samples?count=0"), 422)


def test_a_picture_shows_nothing_from_elsewhere(client, folder):
    linked = folder / "data" / "linked"
    linked.mkdir()
    (linked / "1.png").symlink_to(next((DEMO / "bag").iterdir()))
    assert error_of(client.get("/v1/data/linked/samples"), 409)["code"] == "no_images"


def test_options_and_presets_fit_each_other(client):
    found = client.get("/v1/training/options").json()
    options = {each["name"]: each for group in found["groups"] for each in group["options"]}
    assert options["image_size"]["kind"] == "size" and options["image_size"]["default"] == "28"
    assert options["sample"]["choices"] == ["ddpm", "ddim", "plms", "dpmpp2m", "unipc"]
    assert options["lr"]["open_low"] and options["epochs"]["low"] == 1
    assert not options["dataset"]["editable"] and "result_path" not in options
    for preset in found["presets"]:
        editable = {name for name in preset["values"] if options[name]["editable"]}
        assert editable == set(preset["values"]) and preset["about"]
    for number, preset in enumerate(found["presets"]):
        start(client, f"preset {number}", preset["values"])
    assert options["conditional"]["choices"] == ["auto", "True", "False"]
    for number, value in enumerate((True, False, "auto", "True", "False")):
        start(client, f"conditional {number}", {"conditional": value})
    start(client, "neither", {"conditional": "perhaps"}, 422)


def test_a_plan(client):
    body = {"dataset": "images", "run_name": "a", "options": SHORT}
    plan = client.post("/v1/training/plan", json=body).json()
    assert "images      3 from images" in plan["text"] and plan["warnings"] == ["too few"]
    bad = {**body, "options": {"keep": 3}}
    error = error_of(client.post("/v1/training/plan", json=bad), 422)
    assert "--save_model_interval" in error["message"]
    error_of(client.post("/v1/training/plan", json={**body, "dataset": "none"}), 404)


def test_a_run_as_clients_see_it(client, services):
    run = start(client, "läuft gut")
    assert run["state"] in ("starting", "running") and run["evaluation"] is None
    run = finished(client, services, "läuft gut")
    assert (
        run["options"] == {"epochs": "3"} and run["sentence"] == "It is done: läuft gut/ema_last.pt"
    )
    listed = client.get("/v1/runs").json()["runs"]
    assert [each["name"] for each in listed] == ["läuft gut"]
    assert {key for key in run if key not in listed[0]} == {"options"}
    address = f"/v1/runs/{quote('läuft gut')}"
    found = client.get(f"{address}/metrics?max_points=2").json()
    assert found["columns"]["step"] == [2, 3] and found["columns"]["loss"][1] == pytest.approx(
        1 / 3
    )
    error_of(client.get(f"{address}/metrics?max_points=1"), 422)
    error_of(client.get("/v1/runs/none/metrics"), 404)


def test_the_log_in_pieces_and_previews(client, services, folder):
    start(client, "a")
    finished(client, services, "a")
    run = folder / "results" / "a"
    first = client.get("/v1/runs/a/log").json()
    assert first["start"] == 0 and "leads its session: True" in first["text"]
    with open(run / "output.txt", "a") as file:
        file.write(f"samples in {run}/samples/epoch_0001.png\nhalf a li")
    more = client.get(f"/v1/runs/a/log?after={first['end']}").json()
    assert more["text"] == "samples in a/samples/epoch_0001.png\n" and more["start"] == first["end"]
    assert client.get(f"/v1/runs/a/log?after={more['end']}").json()["text"] == ""
    assert client.get("/v1/runs/a/log?after=100000").json()["start"] == 0  # the file began anew

    picture = next((DEMO / "bag").iterdir()).read_bytes()
    (run / "samples" / "epoch_0001.png").write_bytes(picture)
    (run / "samples" / "epoch_0002.png").symlink_to(next((DEMO / "bag").iterdir()))
    (run / "samples" / "epoch_0003.html").write_text("<script>")
    previews = client.get("/v1/runs/a").json()["previews"]
    assert [each["epoch"] for each in previews] == [1, 2]
    answer = client.get(previews[0]["url"])
    assert answer.content == picture and answer.headers["content-type"] == "image/png"
    error_of(client.get(previews[1]["url"]), 404)  # it leads elsewhere
    for name in ("epoch_0003.html", "..%2fckpt_last.pt", "%2e%2e%2fstatus.json"):
        error_of(client.get(f"/v1/runs/a/previews/{name}"), 404)


def test_stop_resume_queue_and_delete(client, services):
    start(client, "a", LONG)
    wait_for_state(services.training, "a", "running")
    wait_for(lambda: services.training.find("a").step)
    assert start(client, "b")["queue_position"] == 0
    assert error_of(client.request("DELETE", "/v1/runs/b", json={"confirm": "b"}), 409)["code"] == (
        "is_queued"
    )
    assert client.delete("/v1/runs/b/queue").json() == {"name": "b"}
    error_of(client.delete("/v1/runs/b/queue"), 404)
    answer = client.post("/v1/runs/a/stop")
    assert answer.status_code == 202 and answer.json()["state"] in ("stopping", "stopped")
    stopped = wait_for_state(services.training, "a", "stopped")
    assert error_of(client.post("/v1/runs/a/stop"), 409)["code"] == "not_running"
    body = {"options": {"epochs": stopped.step + 1}}
    assert client.post("/v1/runs/a/resume", json=body).status_code == 202
    assert finished(client, services, "a")["step"] == stopped.step + 1
    error_of(client.request("DELETE", "/v1/runs/a", json={"confirm": "b"}), 422)
    error_of(client.delete("/v1/runs/a"), 422)
    assert client.request("DELETE", "/v1/runs/a", json={"confirm": "a"}).json() == {"name": "a"}
    error_of(client.get("/v1/runs/a"), 404)


def test_evaluate_and_promote(client, services):
    start(client, "a")
    finished(client, services, "a")
    assert client.get("/v1/runs/a").json()["checkpoints"][1]["weight"] is None
    answer = client.post("/v1/runs/a/promote", json={"file": "ema_last.pt"})
    assert answer.json() == {"weight": "a"}
    weights = [each["weight"] for each in client.get("/v1/runs/a").json()["checkpoints"]]
    assert weights == [None, "a"]
    answer = client.post("/v1/runs/a/promote", json={"file": "ckpt_last.pt"})
    assert error_of(answer, 409)["code"] == "not_served"
    for file in ("config.json", "../a/ema_last.pt", ""):
        error_of(client.post("/v1/runs/a/promote", json={"file": file}), 404)

    answer = client.post("/v1/runs/a/evaluate", json={"num_images": 100, "sample_steps": 5})
    assert answer.status_code == 202

    def evaluation() -> dict:
        return client.get("/v1/runs/a").json()["evaluation"]

    wait_for(lambda: evaluation()["state"] != "running")
    assert evaluation()["figures"] == {"n": 100, "kid": 0.25}
    error_of(client.post("/v1/runs/a/evaluate", json={"num_images": 1}), 422)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"run_name": "a"}, 422, "dataset"),
        ({"dataset": "images", "run_name": "../a"}, 422, "run_name"),
        ({"dataset": "images", "run_name": ".serving"}, 422, "run_name"),
        ({"dataset": "../data", "run_name": "a"}, 404, "dataset"),
        ({"dataset": "images", "run_name": "a", "more": 1}, 422, "more"),
        ({"dataset": "images", "run_name": "a", "options": {"epochs": "3"}}, 422, "options.epochs"),
        (
            {"dataset": "images", "run_name": "a", "options": {"epochs": True}},
            422,
            "options.epochs",
        ),
        ({"dataset": "images", "run_name": "a", "options": {"lr": 0}}, 422, "options.lr"),
        ({"dataset": "images", "run_name": "a", "options": {"plan": True}}, 422, "options.plan"),
        ({"dataset": "images", "run_name": "a", "options": {"keep": 3}}, 422, "options"),
        ({"dataset": "images", "run_name": "a", "options": []}, 422, "options"),
        ([], 422, None),
    ],
)
def test_what_is_asked_wrongly(client, services, body, status, param):
    assert error_of(client.post("/v1/runs", json=body), status)["param"] == param
    assert services.training.all() == []


def test_a_method_that_a_path_does_not_have(client):
    answer = client.put("/v1/runs")
    assert error_of(answer, 405) and answer.headers["allow"] == "GET, POST"
    assert client.put("/v1/runs/a").headers["allow"] == "DELETE, GET"


def test_bytes_that_are_no_request(client):
    for content in (b"", b"{", b'{"dataset": "images", "run_name": "\\ud800"}', b"\xff" * 10):
        answer = client.post(
            "/v1/runs", content=content, headers={"content-type": "application/json"}
        )
        assert error_of(answer, 400 if content.startswith(b"\xff") else 422)


def test_events_come_when_something_changes(client, services, folder):
    from utils.serving.http.training_api import run_events

    by_hand = start_by_hand(folder, "a", "--epochs=100")
    try:
        wait_for((folder / "results" / "a" / "status.json").exists)

        async def watch() -> list:
            events = []
            async for event in run_events("a", services.training, services):
                events.append(event)
                if event.event == "gone":
                    break
                if event.data.state == "finished":
                    services.training.delete("a")
            return events

        events = asyncio.run(asyncio.wait_for(watch(), 60))
    finally:
        by_hand.kill()
        by_hand.wait()
    assert [event.event for event in events[-2:]] == ["run", "gone"]
    steps = [event.data.step for event in events[:-1]]
    assert steps == sorted(set(steps)) and steps[-1] == 100 and len(steps) >= 2
    assert json.dumps(events[-1].data) == '{"name": "a"}'


def test_a_stream_over_http(client, services):
    start(client, "a")
    finished(client, services, "a")
    services.training.is_closing.set()  # the server is about to end: streams end
    with client.stream("GET", "/v1/runs/a/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.status_code == 200
    error_of(client.get("/v1/runs/none/events"), 404)
