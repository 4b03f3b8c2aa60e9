"""What the tests of test/deploy/ use: servers as processes, and a client for them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import ROOT

LONG = {"num_images": 8, "sample_steps": 200, "sample": "ddim"}  # takes minutes on a CPU
SHORT = {"num_images": 1, "sample_steps": 2, "sample": "ddim"}
END_SECONDS = 20  # that a process has to end


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # the names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Address:
    """Where a server answers."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, body: Any = None, headers: dict | None = None) -> Answer:
        """GET, or POST where there is a body. Raises OSError where nothing answers."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **self.headers, **(headers or {})}
        request = urllib.request.Request(self.url + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return _read(answer)
        except urllib.error.HTTPError as error:
            return _read(error)

    def submit(self, body: dict) -> str:
        """A new job's id."""
        answer = self.ask("/v1/jobs", body)
        assert answer.status == 202, answer
        return answer.json["id"]

    def status_of(self, job: str) -> int:
        """The HTTP status of asking for a job."""
        return self.ask(f"/v1/jobs/{job}").status

    def job(self, job: str) -> dict:
        """What is known of a job."""
        answer = self.ask(f"/v1/jobs/{job}")
        assert answer.status == 200, answer
        return answer.json

    def wait_for_end(self, job: str) -> dict:
        """A job that has ended."""
        wait_until(lambda: self.job(job)["status"] not in ("queued", "generating"), 60)
        return self.job(job)

    def is_ready(self) -> bool:
        try:
            return self.ask("/readyz").status == 200
        except OSError:
            return False


def _read(answer) -> Answer:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Answer(answer.status, headers, answer.read())


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """A process, which is ended with what it started. What it prints goes to the file `log`."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextlib.contextmanager
def server(folder: Path, port: int, name: str) -> Iterator[tuple[subprocess.Popen, Address]]:
    """tools/serve.py with the weights that ship."""
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), "--port", str(port)]
    command += ["--name", name, "--weights", str(ROOT / "weight"), "--use_gpu", "-1"]
    command += ["--result_path", str(folder / name), "--grace", "60"]
    with process(command, folder / f"{name}.log") as child:
        yield child, Address(f"http://127.0.0.1:{port}")
