"""Each limit has an answer of its own, and a server that is asked too much goes on."""

import base64
import concurrent.futures
import contextlib
import io
import select
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from http_helpers import Served, ServerProcess, connected, wait_until, write_weights
from PIL import Image

from utils.serving.http import server as server_module
from utils.serving.http.server import connections_at_most
from utils.serving.limits import Limits

TIMEOUT = 1.0  # seconds that clients have to send a request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    limits = Limits(
        max_images=4, max_steps=50, max_side=64, max_body=10_000, client_timeout=TIMEOUT
    )
    with Served(folder, limits=limits) as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


# --- What a job may be ---


@pytest.mark.parametrize(
    ("question", "most"),
    [
        ({"num_images": 5}, "4"),
        ({"sample_steps": 51}, "50"),
        ({"image_size": 128}, "64"),
        ({"image_size": [8, 128]}, "64"),
    ],
)
def test_a_job_that_is_too_large_is_told_what_is_allowed(client, question, most):
    answer = client.post("/v1/jobs", json={"weight": "tiny", **question})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == next(iter(question)) and most in error["message"]


def test_a_large_body_is_refused(client):
    answer = client.post("/v1/jobs", json={"weight": "x" * 10_000})
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/healthz").status_code == 200


def test_the_queue_and_a_clients_share_are_bounded(folder):
    limits = Limits(max_queue=3, max_client_jobs=2)
    with Served(folder, slow=0.03, limits=limits, tokens=("a", "b")) as server:
        with server.client("a") as one, server.client("b") as other:
            for _ in range(2):
                server.post_job(one, weight="tiny", sample_steps=100)
            answer = one.post("/v1/jobs", json={})
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "client_share_full"
            server.post_job(other, weight="tiny", sample_steps=100)
            answer = other.post("/v1/jobs", json={})
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"


def test_a_late_job_is_given_up(folder):
    with Served(folder, slow=0.03, limits=Limits(deadline=0.3)) as server:
        with server.client() as client:
            job = server.post_job(client, weight="tiny", sample_steps=100)
            wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "failed")
            error = client.get(f"/v1/jobs/{job}").json()["error"]
            assert error["code"] == "deadline"
            question = {"weight_path": "tiny", "sample_steps": 100}
            assert client.post("/api/generate/df", json=question).status_code == 504


def test_streams_are_bounded(folder):
    with Served(folder, slow=0.05, limits=Limits(max_streams=1)) as server:
        with server.client() as client:
            job = server.post_job(client, weight="tiny", sample_steps=100)
            events = f"/v1/jobs/{job}/events"
            with client.stream("GET", events) as stream:
                lines = stream.iter_lines()
                next(lines)
                assert client.get(events).status_code == 429
            wait_until(lambda: client.get(f"/v1/jobs/{job}").status_code == 200)
            client.post(f"/v1/jobs/{job}/cancel")
            wait_until(lambda: client.get(events).status_code == 200)


# --- Clients that are slow ---


def test_who_drips_its_request_is_cut_off(server):
    for beginning in (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", HEAD_OF_A_BODY):
        with connected(server.port) as connection:
            connection.sendall(beginning)
            start = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() < start + 20:
                    connection.sendall(b" ")
                    time.sleep(0.05)
            assert time.monotonic() - start < 4 * TIMEOUT


HEAD_OF_A_BODY = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5000\r\n\r\n{"
)


def test_who_says_nothing_is_cut_off(server):
    with connected(server.port) as connection:
        start = time.monotonic()
        with pytest.raises(ConnectionResetError):
            connection.recv(10)
        assert time.monotonic() - start < 4 * TIMEOUT


def test_who_does_not_read_is_cut_off(server, client):
    """Answers that nobody takes: more than the buffers of a connection hold."""
    size = len(client.get("/openapi.json").content)
    with connected(server.port) as connection:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request * (20_000_000 // size))
        poller = select.poll()
        poller.register(connection, 0)  # which tells of errors alone
        assert poller.poll(15_000)
    assert client.get("/healthz").status_code == 200


def test_a_head_without_end_is_cut_off(server):
    with connected(server.port) as connection, pytest.raises(OSError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(100_000):
            connection.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1000))
    with connected(server.port) as connection, pytest.raises(OSError):
        connection.sendall(b"GET /")
        for _ in range(100_000):
            connection.sendall(b"x" * 1000)
    usual = {"X-Long": "x" * 30_000}
    with server.client() as client:
        assert client.get("/healthz", headers=usual).status_code == 200


def test_connections_are_bounded(folder, monkeypatch):
    assert 50 <= connections_at_most() <= 4000
    monkeypatch.setattr(server_module, "connections_at_most", lambda: 3)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Served(folder, limits=Limits(client_timeout=30)) as server:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connected(server.port)) for _ in range(3)]
            for connection in held:
                connection.sendall(request)
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
            with connected(server.port) as one_more, pytest.raises(OSError):
                one_more.sendall(request)
                if not one_more.recv(100):
                    raise ConnectionResetError
        with server.client() as client:
            assert client.get("/healthz").status_code == 200


def test_a_jpeg_that_takes_long_to_decode_is_refused(server):
    """It may go over its picture as often as it likes, at a few bytes each time."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", progressive=True)
    usual = base64.b64encode(buffer.getvalue()).decode()
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x05\x00"
    many = base64.b64encode(buffer.getvalue()[:-2] + scan * 200).decode()
    with server.client() as client:
        question = {"weight": "tiny", "sample_steps": 2, "num_images": 1, "strength": 0.5}
        assert client.post("/v1/jobs", json={**question, "init_image": usual}).status_code == 202
        answer = client.post("/v1/jobs", json={**question, "init_image": many})
        assert answer.status_code == 400 and "scans" in answer.json()["error"]["message"]


def test_a_stream_of_events_outlives_the_deadline_of_requests(folder):
    with Served(folder, slow=0.03, limits=Limits(client_timeout=0.5)) as server:
        with server.client() as client:
            job = server.post_job(client, weight="tiny", sample_steps=30)
            with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
                kinds = [line for line in stream.iter_lines() if line.startswith("event:")]
    assert kinds[-1] == "event: end"


def test_a_long_answer_outlives_the_deadline_of_requests(folder):
    with Served(folder, slow=0.03, limits=Limits(client_timeout=0.5)) as server:
        with server.client() as client:
            question = {"weight_path": "tiny", "sample_steps": 50}
            start = time.monotonic()
            assert client.post("/api/generate/df", json=question).status_code == 200
            assert time.monotonic() - start > 1


# --- Too many clients ---


def overload(url: str, seconds: float, clients: int) -> Counter:
    """What so many clients are answered who ask without pause, by all of the APIs."""
    end = time.monotonic() + seconds
    asked = [
        ("/v1/jobs", {"weight": "tiny", "sample_steps": 20}),
        ("/v1/images/generations", {"model": "tiny", "prompt": "cat", "sample_steps": 20}),
        ("/api/generate/df", {"weight_path": "tiny", "sample_steps": 20}),
    ]

    def ask(number: int) -> Counter:
        statuses: Counter = Counter()
        path, question = asked[number % len(asked)]
        with httpx.Client(base_url=url, timeout=60) as client:
            while time.monotonic() < end:
                statuses[client.post(path, json=question).status_code] += 1
        return statuses

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(ask, range(clients)), Counter())


@pytest.mark.slow
def test_ten_times_too_much_is_refused_in_good_order(folder):
    """Four jobs are worked on at a time, and forty clients want one each."""
    with ServerProcess(folder, "--max_queue", 4) as server, server.client() as client:
        statuses = overload(server.url, 5, 40)
        assert set(statuses) <= {200, 202, 429} and statuses[200] and statuses[429]
        wait_until(lambda: "jobs_under_way 0.0" in client.get("/metrics").text)
        assert client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_requests_leave_no_memory_behind(folder):
    """After a start that fills what is kept, the memory stays as it is."""
    question = {"model": "plain", "prompt": "", "sample_steps": 1}

    def ask(client: httpx.Client, count: int) -> None:
        for number in range(count):
            if number % 2:
                answer = client.post("/v1/images/generations", json=question)
            else:
                answer = client.post("/v1/jobs", json={"weight": "plain", "sample_steps": 1})
            assert answer.status_code in (200, 202, 429), answer.text

    with ServerProcess(folder) as server, server.client() as client:
        ask(client, 500)
        before = server.memory()
        ask(client, 1500)
        assert server.memory() - before < 20_000_000


@pytest.mark.slow
def test_a_large_body_in_chunks_costs_no_memory(folder):
    def chunks() -> Iterator[bytes]:
        for _ in range(500):
            yield b" " * 10_000

    with ServerProcess(folder, "--max_body", 100_000) as server, server.client() as client:
        client.get("/readyz")
        before = server.memory()
        headers = {"Content-Type": "application/json"}
        try:
            answer = client.post("/v1/jobs", content=chunks(), headers=headers)
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the answer came while the client was still sending, and the connection ended
        assert server.memory() - before < 2_000_000
        assert client.get("/healthz").status_code == 200
