"""tools/serve_ray.py: two replicas that clients see as one, and what they see when one dies."""

import importlib.util
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from deploy_helpers import LONG, SHORT, Address, free_port, process, wait_until
from helpers import ROOT

HAS_RAY = importlib.util.find_spec("ray") and importlib.util.find_spec("aiohttp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_RAY, reason="requirements-ray.txt is not installed"),
]

SCRIPT = ROOT / "tools" / "serve_ray.py"
TOKEN = "a-token"
MARK = "IDDM_TEST_OF_RAY"  # variable by which this test's processes are known
STARTED = 120  # seconds within which Ray and its replicas have started
NOTICED = 60  # seconds within which Ray notices a death


@dataclass
class Cluster:
    front: Address
    mark: str

    def replicas(self) -> list[int]:
        """Process ids of the replicas that this test has started."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                is_own = self.mark.encode() in (folder / "environ").read_bytes()
            except OSError:  # it has just ended
                continue
            if command.startswith(b"ray::ServeReplica:") and is_own:
                found.append(int(folder.name))
        return sorted(found)

    def a_job_of_each(self, body: dict) -> dict[str, str]:
        """The name of each of the two replicas, with a job of it."""
        jobs: dict[str, str] = {}

        def have_two() -> bool:
            job = self.front.submit(body)
            jobs.setdefault(job.partition("-")[0], job)
            return len(jobs) == 2

        wait_until(have_two, 30)
        return jobs


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    port = free_port()
    command = [sys.executable, str(SCRIPT), "--port", str(port), "--use_gpu", "-1"]
    command += ["--weights", str(ROOT / "weight"), "--cpus_per_replica", "0.5", "--grace", "5"]
    command += ["--max_client_jobs", "64"]
    mark = uuid.uuid4().hex
    variables = {MARK: mark, "SERVE_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    # Of Ray itself, which would write one to the user's home otherwise.
    variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    front = Address(f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {TOKEN}"})
    with process(command, folder / "ray.log", **variables) as child:
        wait_until(front.is_ready, STARTED)
        yield Cluster(front, mark)
        child.terminate()
        assert child.wait(60) == 0


def test_any_replica_answers_for_any_job(cluster: Cluster) -> None:
    for job in cluster.a_job_of_each(SHORT).values():
        for _ in range(6):  # Ray sends some of them to the other replica
            assert cluster.front.status_of(job) == 200
        ended = cluster.front.wait_for_end(job)
        assert ended["status"] == "completed", ended
        for _ in range(4):
            picture = cluster.front.ask(ended["result"]["images"][0]["url"])
            assert picture.status == 200 and picture.body.startswith(b"\x89PNG")
            assert picture.headers["content-type"] == "image/png"
            events = cluster.front.ask(f"/v1/jobs/{job}/events")
            assert b"event: end" in events.body
    assert cluster.front.status_of("nobody-1-1-0") == 404


def test_a_token_is_needed_by_way_of_another_replica_too(cluster: Cluster) -> None:
    stranger = Address(cluster.front.url)
    for job in cluster.a_job_of_each(SHORT).values():
        for _ in range(4):
            assert stranger.status_of(job) == 401


def test_a_dead_replica_takes_its_jobs_with_it_and_ray_starts_another(cluster: Cluster) -> None:
    jobs = cluster.a_job_of_each(LONG)
    before = cluster.replicas()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)

    def statuses() -> list[int]:
        return sorted(cluster.front.status_of(job) for job in jobs.values())

    wait_until(lambda: statuses() == [200, 410], NOTICED)
    wait_until(lambda: len(set(cluster.replicas()) - {before[0]}) == 2, NOTICED)
    new = cluster.a_job_of_each(SHORT)
    assert len(set(new) & set(jobs)) == 1  # the other name is a new one
    for _ in range(6):
        assert statuses() == [200, 410]
    for job in new.values():
        assert cluster.front.status_of(job) == 200


def test_the_file_for_serve_deploy_builds_the_same_application(monkeypatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    from tools.serve_ray import application

    monkeypatch.setenv("SERVE_TOKEN", "t")
    settings = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    described = ServeDeploySchema.model_validate(settings).applications[0]
    assert described.import_path == f"tools.serve_ray:{application.__name__}"
    built = application(described.args)
    assert built._bound_deployment.num_replicas == 2
    assert built._bound_deployment.ray_actor_options["num_gpus"] == 1


def test_other_machines_need_a_token() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "SERVE_TOKEN"},
    )
    assert done.returncode == 2
    assert "--token" in done.stderr and "Traceback" not in done.stderr
