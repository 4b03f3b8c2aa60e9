"""deploy/haproxy.cfg in front of two servers, and what clients see when one of them dies."""

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deploy_helpers import LONG, SHORT, Address, free_port, process, server, wait_until
from helpers import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed"),
]

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
NAMES = ("r1", "r2")
NOTICED = 10  # seconds within which HAProxy notices that a server has come or gone


@dataclass
class Pair:
    """Two servers and the HAProxy before them."""

    folder: Path
    ports: dict[str, int]
    front: Address
    processes: dict[str, subprocess.Popen]
    stack: contextlib.ExitStack

    def direct(self, name: str) -> Address:
        return Address(f"http://127.0.0.1:{self.ports[name]}")

    def start(self, name: str) -> None:
        child, _ = self.stack.enter_context(server(self.folder, self.ports[name], name))
        self.processes[name] = child

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def in_rotation(self) -> set[str]:
        """The servers that get requests which any may answer, as HAProxy's cookie tells."""
        cookies = [self.front.ask("/readyz").headers["set-cookie"] for _ in range(6)]
        return {cookie.partition(";")[0].removeprefix("replica=") for cookie in cookies}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    ports = {name: free_port() for name in NAMES}
    bind = f"127.0.0.1:{free_port()}"
    variables = {name.upper(): f"127.0.0.1:{port}" for name, port in ports.items()}
    command = ["haproxy", "-f", str(CONFIGURATION)]
    with contextlib.ExitStack() as stack:
        pair = Pair(tmp_path, ports, Address(f"http://{bind}"), {}, stack)
        for name in NAMES:
            pair.start(name)
        for name in NAMES:
            wait_until(pair.direct(name).is_ready, 60)
        stack.enter_context(
            process(command, tmp_path / "haproxy.log", HAPROXY_BIND=bind, **variables)
        )
        wait_until(pair.front.is_ready, NOTICED)
        yield pair


def test_the_configuration_is_valid() -> None:
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(CONFIGURATION)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_is_about_a_job_goes_to_its_server(pair: Pair) -> None:
    new = {pair.front.submit(SHORT).partition("-")[0] for _ in range(6)}
    assert new == set(NAMES)
    for name in NAMES:
        job = pair.direct(name).submit(SHORT)
        ended = pair.front.wait_for_end(job)
        assert ended["status"] == "completed", ended
        picture = pair.front.ask(ended["result"]["images"][0]["url"])
        assert picture.status == 200 and picture.body.startswith(b"\x89PNG")
    assert pair.front.status_of("r2-none") == 404
    assert pair.front.ask("/metrics").status == 404


def test_a_browser_stays_with_its_server(pair: Pair) -> None:
    first = pair.front.ask("/v1/jobs", SHORT)
    cookie = first.headers["set-cookie"].partition(";")[0]
    for _ in range(4):
        listed = pair.front.ask("/v1/jobs", headers={"Cookie": cookie}).json["jobs"]
        assert first.json["id"] in [job["id"] for job in listed]


def test_a_dead_server_takes_its_jobs_with_it_and_nothing_else(pair: Pair) -> None:
    lost = pair.direct("r1").submit(LONG)
    kept = pair.direct("r2").submit(SHORT)
    assert pair.front.status_of(lost) == 200
    pair.kill("r1")

    for path in (f"/v1/jobs/{lost}", f"/v1/jobs/{lost}/images/0"):
        gone = pair.front.ask(path)
        assert gone.status == 410
        assert gone.json["error"]["code"] == "expired"
    assert pair.front.wait_for_end(kept)["status"] == "completed"
    assert pair.in_rotation() == {"r2"}  # from the first request on

    pair.start("r1")
    wait_until(lambda: pair.in_rotation() == set(NAMES), 60)
    assert pair.front.status_of(lost) == 410  # it had that name, but in an earlier life


def test_a_server_that_ends_gets_no_new_jobs_but_answers_for_its_own(pair: Pair) -> None:
    job = pair.direct("r1").submit({**SHORT, "num_images": 16, "sample_steps": 100})
    wait_until(lambda: pair.direct("r1").job(job)["status"] == "generating", NOTICED)
    pair.processes["r1"].send_signal(signal.SIGTERM)
    wait_until(lambda: not pair.direct("r1").is_ready(), NOTICED)
    assert pair.in_rotation() == {"r2"}  # at once: HAProxy sends on what r1 refuses
    assert pair.front.job(job)["status"] == "generating"
    assert pair.processes["r1"].wait(60) == 0


def test_without_any_server(pair: Pair) -> None:
    for name in NAMES:
        pair.kill(name)
    answer = pair.front.ask("/v1/jobs", SHORT)
    assert answer.status == 503
    assert answer.json["error"]["type"] == "service_unavailable_error"
