"""How the real script ends: what is under way is finished, and nobody is left without an answer."""

import json
import signal
import socket
import threading
import time

import httpx
import pytest
from http_helpers import ServerProcess, connected, wait_until, write_weights

pytestmark = pytest.mark.slow  # each starts the script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return write_weights(tmp_path_factory.mktemp("weights"))


def submit(client: httpx.Client, **changes) -> str:
    question = {"weight": "tiny", "sample_steps": 100, "num_images": 8, "image_size": 64}
    answer = client.post("/v1/jobs", json={**question, **changes})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def status_of(client: httpx.Client, job: str) -> str:
    return client.get(f"/v1/jobs/{job}").json()["status"]


class Listener(threading.Thread):
    """Keeps what a stream of events, or a request that lasts, ends with."""

    def __init__(self, client: httpx.Client, method: str, path: str, **options):
        super().__init__()
        self._request = lambda: client.stream(method, path, **options)
        self.status = 0
        self.text = ""
        self.start()

    def run(self) -> None:
        with self._request() as answer:
            self.status = answer.status_code
            self.text = answer.read().decode()


def last_event(text: str) -> dict:
    """What the event `end` of a stream says."""
    _, _, end = text.partition("event: end\n")
    data = next(line for line in end.splitlines() if line.startswith("data:"))
    return json.loads(data.removeprefix("data:"))


def test_jobs_under_way_are_finished_and_others_refused(folder):
    with ServerProcess(folder, grace=60) as server, server.client() as client:
        # 32 jobs are worked on at a time; the last one has to wait.
        running = [submit(client, num_images=1, image_size=32) for _ in range(2)]
        wait_until(lambda: status_of(client, running[-1]) == "generating")
        events = Listener(client, "GET", f"/v1/jobs/{running[0]}/events")
        question = {"model": "tiny", "prompt": "cat", "sample_steps": 100, "size": "32x32"}
        images = Listener(client, "POST", "/v1/images/generations", json=question)
        wait_until(lambda: "jobs_under_way 3.0" in client.get("/metrics").text)
        server.signal()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/jobs", json={})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        events.join(60)
        images.join(60)
        assert last_event(events.text)["status"] == "completed"
        assert images.status in (200, 503)
        assert server.process.wait(60) == 0


def test_queued_jobs_are_told(folder):
    with ServerProcess(folder, "--max_client_jobs", 40, grace=30) as server:
        with server.client() as client:
            running = [submit(client) for _ in range(32)]
            wait_until(lambda: status_of(client, running[-1]) == "generating")
            question = {"model": "tiny", "prompt": "cat"}
            waiting = Listener(client, "POST", "/v1/images/generations", json=question)
            wait_until(lambda: "jobs_queued 1.0" in client.get("/metrics").text)
            server.signal()
            waiting.join(20)
            assert waiting.status == 503 and "about to end" in waiting.text
            for job in running:
                client.post(f"/v1/jobs/{job}/cancel")
            assert server.process.wait(20) == 0


def test_the_socket_service_ends_with_the_server(folder):
    port = free_port()
    with ServerProcess(folder, "--socket", port, grace=30) as server, server.client() as client:
        with connected(port) as asking, connected(port) as idle:
            question = {"weight_path": "tiny", "sample_steps": 100, "image_size": 32}
            asking.sendall(json.dumps(question).encode() + b"-iccv-over")
            wait_until(lambda: is_generating(client))
            server.signal()
            answer = b""
            while chunk := asking.recv(65536):
                answer += chunk
            assert len(json.loads(answer)["image"]) == 1
            assert server.process.wait(20) == 0
            assert idle.recv(10) == b""
        assert "Traceback" not in server.process.stderr.read()


def is_generating(client: httpx.Client) -> bool:
    text = client.get("/metrics").text
    return "jobs_under_way 1.0" in text and "jobs_queued 0.0" in text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_after_the_grace_streams_get_a_last_event(folder):
    with ServerProcess(folder, grace=1) as server, server.client() as client:
        job = submit(client, num_images=64, image_size=128)
        wait_until(lambda: status_of(client, job) == "generating")
        events = Listener(client, "GET", f"/v1/jobs/{job}/events")
        time.sleep(0.2)
        server.signal()
        events.join(20)
        assert "about to end" in last_event(events.text)["error"]["message"]
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(folder, number):
    with ServerProcess(folder, grace=300) as server, server.client() as client:
        job = submit(client, num_images=64, image_size=128)
        wait_until(lambda: status_of(client, job) == "generating")
        server.signal(number)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        start = time.monotonic()
        server.signal(number)
        server.process.wait(10)
        assert time.monotonic() - start < 5  # however long a step takes


def test_the_images_of_a_server_go_with_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with ServerProcess(folder) as server, server.client() as client:
        job = submit(client, sample_steps=1, image_size=8)
        wait_until(lambda: status_of(client, job) == "completed")
        assert list(tmp_path.glob("iddm-images-*/*/*"))
        server.signal()
        assert server.process.wait(20) == 0
    assert not list(tmp_path.glob("iddm-images-*"))


def test_a_port_that_is_taken_is_a_sentence(folder):
    with ServerProcess(folder) as server:
        with pytest.raises(AssertionError, match=f"--port {server.port} cannot be listened at"):
            ServerProcess(folder, "--port", server.port)
        with pytest.raises(AssertionError, match="--socket"):
            ServerProcess(folder, "--socket", server.port)
