"""The socket service, with clients that behave well and with others."""

import base64
import io
import json
import os
import random
import socket
import time
from collections.abc import Iterator

import pytest
from http_helpers import SIDE, Served, connected, wait_until, write_weights
from PIL import Image

from utils.serving.limits import Limits

END = b"-iccv-over"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    with Served(folder, limits=Limits(client_timeout=1.0, max_body=10_000)) as server:
        yield server


def connect(server: Served) -> socket.socket:
    return connected(server.socket_service.port)


def request(**changes) -> bytes:
    usual = {"weight_path": "/your/path/tiny.pt", "num_images": 1, "sample_steps": 3, "seed": 1}
    return json.dumps({**usual, **changes}, ensure_ascii=False).encode() + END


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = bytearray()
    while True:
        chunk = connection.recv(65536)
        if not chunk:
            return bytes(data)
        data += chunk


def ask(server: Served, *parts: bytes) -> bytes:
    with connect(server) as connection:
        for part in parts:
            connection.sendall(part)
        return answer_of(connection)


def images(answer: bytes) -> list[Image.Image]:
    entries = json.loads(answer)["image"]
    return [Image.open(io.BytesIO(base64.b64decode(each["image"]))) for each in entries]


def test_a_request_is_answered_by_json(server):
    image = images(ask(server, request(class_name=2)))[0]
    assert image.size == (SIDE, SIDE) and image.text["class"] == "red fox"
    with server.client() as client:  # and HTTP gives the same
        body = json.loads(request(class_name=2).removesuffix(END))
        data = json.loads(client.post("/api/generate/df", json=body).json()["data"])
    same = Image.open(io.BytesIO(base64.b64decode(data["image"][0]["image"])))
    assert image.tobytes() == same.tobytes()


def test_white_space_may_follow(server):
    assert images(ask(server, request(), b" \r\n"))


def test_characters_may_be_split_between_packets(server):
    whole = request(result_path="/тест/结果")
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(whole)):
            connection.sendall(whole[place : place + 1])
        assert images(answer_of(connection))


def test_two_requests_at_once_are_answered_in_their_order(server):
    answer = ask(server, request(class_name="cat") + b"\n" + request(class_name="dog"))
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(answer.decode())
    second, _ = decoder.raw_decode(answer.decode()[end:])
    classes = [images(json.dumps(each).encode())[0].text["class"] for each in (first, second)]
    assert classes == ["cat", "dog"]


def test_a_bad_request_does_not_harm_the_one_behind_it(server):
    answer = ask(server, b"{}" + END + request())
    assert answer.startswith(b"500") and images(answer.removeprefix(b"500"))


def test_a_client_that_shuts_its_sending_side_gets_its_answer(server):
    with connect(server) as connection:
        connection.sendall(request())
        connection.shutdown(socket.SHUT_WR)
        assert images(answer_of(connection))


@pytest.mark.parametrize("is_half_closed", [False, True])
def test_a_client_that_reads_slowly_gets_all(server, is_half_closed, monkeypatch):
    """For longer than a silent one is waited for, in all."""
    answer = os.urandom(600_000)

    async def images(*_):
        return answer

    monkeypatch.setattr(server.socket_service, "_images", images)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.socket_service.port))
        connection.sendall(request())
        if is_half_closed:
            connection.shutdown(socket.SHUT_WR)
        found = bytearray()
        while chunk := connection.recv(20_000):
            found += chunk
            time.sleep(0.05)
    assert bytes(found) == answer


def test_a_client_that_sends_twice_and_goes_is_survived(server):
    before = server.engine.statistics.submitted
    with connect(server) as connection:
        connection.sendall(request())
        connection.sendall(request())
    wait_until(lambda: server.engine.statistics.submitted >= before + 1)
    wait_until(lambda: not server.engine.jobs.under_way())
    assert images(ask(server, request()))


@pytest.mark.parametrize(
    "frame",
    [
        END,
        b"null" + END,
        b"[]" + END,
        b"{" + END,
        b"\xff\xfe{}" + END,
        b"[" * 5000 + END,
        b'{"weight_path": 1e999}' + END,
        request(weight_path="nothing"),
        request(weight_path="/etc/passwd\0"),
        request(num_images=65),
        request(num_images="many"),
        request(sample="euler"),
        request(image_size=9),
        request(type="url"),
        request(class_name="house"),
        b"x" * 20_000,  # more than a request may have, and no end
    ],
)
def test_any_error_is_500(server, frame):
    assert ask(server, frame) == b"500"


def test_half_a_request_is_500(server):
    with connect(server) as connection:
        connection.sendall(request()[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert answer_of(connection) == b"500"


def test_who_says_nothing_is_cut_off(server):
    with connect(server) as connection:
        start = time.monotonic()
        assert answer_of(connection) == b"500"
        assert 0.9 < time.monotonic() - start < 5


def test_who_comes_and_goes_is_no_error(server):
    with connect(server) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert answer_of(connection) == b""


def test_a_client_without_end_is_cut_off(server):
    end = time.monotonic() + 10
    with connect(server) as connection, pytest.raises(OSError):
        while time.monotonic() < end:
            connection.sendall(b" {" * 5000)


def test_a_full_queue_is_500(folder):
    with Served(folder, slow=0.05, limits=Limits(max_queue=1)) as server, server.client() as client:
        job = server.post_job(client, sample_steps=100)
        assert ask(server, request()) == b"500"
        client.post(f"/v1/jobs/{job}/cancel")


def test_a_token_is_needed_where_there_is_one(folder):
    with Served(folder, tokens=("secret",)) as server:
        assert ask(server, request()) == b"500"
        assert ask(server, request(token="wrong")) == b"500"
        assert ask(server, request(token=["secret"])) == b"500"
        assert images(ask(server, request(token="secret")))


# --- Many bad ones ---


def fuzzed(random: random.Random) -> list[bytes]:
    """A request, or what was one, in the packets that it is sent in."""
    frame = bytearray(request(class_name=random.choice(["猫", "house", "Füchse"]), sample_steps=1))
    kind = random.randrange(6)
    if kind == 0:
        frame = bytearray(random.randbytes(random.randrange(200)) + END)
    elif kind == 1:
        frame[random.randrange(len(frame))] = random.randrange(256)
    elif kind == 2:
        frame = frame[: random.randrange(len(frame))]
    elif kind == 3:
        frame += bytes(frame)
    elif kind == 4:
        del frame[random.randrange(20) : random.randrange(20, 60)]
    cut = random.randrange(len(frame) + 1)
    return [bytes(frame[:cut]), bytes(frame[cut:])]


@pytest.mark.slow
def test_ten_thousand_bad_requests_leave_nothing_behind(server):
    generator = random.Random(0)
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(10_000):
        with connect(server) as connection:
            try:
                for part in fuzzed(generator):
                    connection.sendall(part)
                if generator.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
                    assert answer_of(connection)[:3] in (b"500", b"", b'{"i')
            except ConnectionError:
                pass
    wait_until(lambda: not server.socket_service._connections)
    wait_until(lambda: not server.engine.jobs.under_way())
    assert len(os.listdir("/proc/self/fd")) <= files + 5
    start, seconds = time.process_time(), 1.0
    time.sleep(seconds)
    assert time.process_time() - start < 0.2 * seconds  # nothing runs in circles
    assert images(ask(server, request()))
