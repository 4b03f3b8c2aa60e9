"""The image of Dockerfile, built and run: what may be written, health, jobs, and its end."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from container_helpers import Engine, InsideAddress, why_not_here
from deploy_helpers import SHORT, Address, wait_until
from helpers import DEMO

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())]

USER = 10001
TOKEN = "a-token"
PORT = 8000
RUN = "in_container"
MOUNTED = ("datasets", "results", "weights")
TINY = {"channels": 8, "channel_mult": "1,2", "head_channels": 8, "image_size": "8"}


@dataclass
class Running:
    engine: Engine
    name: str
    front: Address
    folder: Path  # what is mounted

    def shell(self, command: str) -> tuple[int, str]:
        done = self.engine.podman("exec", self.name, "sh", "-c", command, check=False)
        return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("containers"))
    try:
        engine.make_base()
        engine.build()
        yield engine
    finally:
        engine.remove()


@pytest.fixture(scope="module")
def running(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("mounted")
    for name in MOUNTED:
        (folder / name).mkdir()
    shutil.copytree(DEMO, folder / "datasets" / "demo")
    os.chown(folder / "results", USER, USER)
    mounts = [f"{folder}/{name}:/app/{name}" for name in MOUNTED]
    volumes = [text for mount in mounts for text in ("--volume", mount)]
    name = "served"
    started = engine.start(name, "--detach", *volumes, "--env", f"SERVE_TOKEN={TOKEN}", "iddm")
    assert started.returncode == 0, started.stderr
    process = int(engine.inspect(name, "State.Pid"))
    front = InsideAddress(process, PORT, {"Authorization": f"Bearer {TOKEN}"})
    try:
        wait_until(front.is_ready, 60)
        yield Running(engine, name, front, folder)
    finally:
        engine.podman("rm", "--force", "--time", "0", name)


def test_a_user_without_rights_and_a_root_that_is_read_only(running: Running) -> None:
    assert running.shell("id -u; id -g") == (0, f"{USER}\n{USER}")
    _, capabilities = running.shell("grep CapEff /proc/1/status")
    assert int(capabilities.split()[1], 16) == 0
    for file in ("/app/new", "/app/tools/serve.py", "/etc/new", "/app/weights/new"):
        assert running.shell(f"touch {file}")[0] != 0, file
    for folder in ("/app/results", "/tmp"):
        assert running.shell(f"touch {folder}/new && rm {folder}/new")[0] == 0, folder


def test_only_what_is_named_is_in_the_image(running: Running) -> None:
    _, listed = running.shell("ls -A /app /app/deploy")
    found = set(listed.split())
    assert not found & {".git", "test", "docs", "compose.yaml", "pyproject.toml"}
    assert {"tools", "utils", "model", "weight", "LICENSE", "entrypoint.py"} <= found


def test_the_health_check_follows_the_server(running: Running) -> None:
    assert running.engine.podman("healthcheck", "run", running.name).returncode == 0
    assert running.engine.inspect(running.name, "State.Health.Status") == "healthy"
    status, _ = running.shell("python deploy/healthcheck.py 8001")  # where nothing answers
    assert status == 1


def test_a_job_is_served_to_who_has_the_token(running: Running) -> None:
    names = {weight["name"] for weight in running.front.ask("/v1/capabilities").json["weights"]}
    assert {
        "demo",
        "upscaler_x2",
    } <= names  # those in the image, though the mounted folder is empty
    job = running.front.wait_for_end(running.front.submit({**SHORT, "weight": "demo"}))
    assert job["status"] == "completed", job
    picture = running.front.ask(job["result"]["images"][0]["url"])
    assert picture.status == 200 and picture.body.startswith(b"\x89PNG")
    assert running.front.ask("/v1/jobs", headers={"Authorization": "Bearer wrong"}).status == 401


def test_without_a_token_it_does_not_start(engine: Engine) -> None:
    done = engine.start("refused", "--rm", "iddm")
    assert done.returncode == 2
    assert "SERVE_TOKEN" in done.stderr and "Traceback" not in done.stderr


def test_another_script_runs_in_it(engine: Engine) -> None:
    image = ["--entrypoint", "python", "iddm", "tools/generate.py", "--num_images", "1"]
    done = engine.start("generates", "--rm", *image, "--sample_steps", "2", "--use_gpu", "-1")
    assert done.returncode == 0, done.stderr


# The last one, since it ends the container of all tests.
def test_at_the_end_a_training_run_saves(running: Running) -> None:
    question = {"dataset": "demo", "run_name": RUN, "options": {**TINY, "epochs": 1000}}
    started = running.front.ask("/v1/runs", question)
    assert started.status == 202, started

    def has_begun() -> bool:
        run = running.front.ask(f"/v1/runs/{RUN}").json
        assert run["error"] is None, run
        return (run["step"] or 0) > 0

    wait_until(has_begun, 240)
    running.engine.podman("stop", "--time", "60", running.name)
    assert running.engine.inspect(running.name, "State.ExitCode") == "0"
    folder = running.folder / "results" / RUN
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert (folder / "ckpt_last.pt").exists()
    assert folder.stat().st_uid == USER
