"""What a server gives away, to whom, and what it opens: nothing that it was not asked to serve."""

import builtins
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from http_helpers import Served, ServerProcess, wait_until, write_weights

SECRET = "what nobody may see"

# Ways to name a file outside of what is served.
ROOTS = ["/etc/passwd", "/proc/self/environ", "{secret}", "../{name}", "../../{name}", "{link}"]
PATHS = [
    *ROOTS,
    "..",
    ".",
    "/",
    "//",
    "~",
    "~/.ssh/id_rsa",
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "..%c0%af..%c0%afetc/passwd",
    "..\\..\\windows\\win.ini",
    "..%5c..%5cwindows%5cwin.ini",
    "C:\\windows\\win.ini",
    "C:/windows/win.ini",
    "\\\\server\\share\\file.pt",
    "//server/share/file.pt",
    "file:///etc/passwd",
    "http://127.0.0.1:1/file.pt",
    "tiny.pt\0.png",
    "tiny%00",
    "%00",
    "/etc/passwd%00.pt",
    "tiny.pt/../../{name}",
    "tiny/../../../etc/passwd",
    "....//....//etc/passwd",
    "..;/etc/passwd",
    "/./etc/./passwd",
    "/etc//passwd",
    "{secret}/",
    "{secret}.pt",
    "{folder}",
    "{folder}/tiny.pt/..",
    "{folder}/../{name}",
    "link",
    "link.pt",
    "link/secret",
    "$HOME",
    "${{HOME}}/secret",
    "%HOME%",
    "`cat /etc/passwd`",
    "$(cat /etc/passwd)",
    "tiny; cat /etc/passwd",
    "tiny|cat",
    "CON",
    "NUL.pt",
    "a" * 400,
    "\u2025/\u2025/etc/passwd",
    "\uff0e\uff0e\uff0fetc",
    "\u202etp.dwssap",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights/ is served; beside it lies a file that is not, with a link to it from within."""
    place = tmp_path_factory.mktemp("place")
    write_weights(place / "weights")
    (place / "secret.pt").write_text(SECRET)
    (place / "weights" / "link.pt").symlink_to(place / "secret.pt")
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[Served]:
    with Served(place / "weights") as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


# --- Paths ---


def filled(path: str, place: Path) -> str:
    names = {"secret": place / "secret.pt", "name": "secret.pt", "folder": place / "weights"}
    return path.format(link=place / "weights" / "link.pt", **names)


def requests_with(path: str) -> list[tuple[str, str, dict | None]]:
    """A path wherever a request may hold one."""
    addresses = [
        f"/{path}",
        f"/page/{path}",
        f"/v1/models/{path}",
        f"/v1/jobs/{path}",
        f"/v1/jobs/{path}/images/0",
        f"/v1/jobs/1-1-1/images/{path}",
        f"/v1/data/{path}/samples",
        f"/v1/runs/{path}",
        f"/v1/runs/x/previews/{path}",
    ]
    questions = [
        ("/v1/jobs", {"weight": path}),
        ("/v1/jobs", {"upscale": path}),
        ("/v1/jobs", {"class_name": path, "weight": "tiny"}),
        ("/v1/images/generations", {"prompt": path, "model": "tiny"}),
        ("/v1/images/generations", {"prompt": "", "model": path}),
        ("/api/generate/df", {"weight_path": path}),
        ("/api/generate/df", {"weight_path": "nothing", "result_path": path}),
        ("/api/generate/sr", {"image": path, "weight_path": "twice"}),
        ("/api/generate/sr", {"image": "", "weight_path": path}),
    ]
    return [
        *(("GET", address, None) for address in addresses),
        *(("POST", address, question) for address, question in questions),
    ]


def test_no_path_opens_anything(server, place, monkeypatch):
    assert len(PATHS) >= 50
    opened: list[str] = []
    real = {"builtins": builtins.open, "io": io.open, "os": os.open}

    def watching(name: str):
        def open_(file, *args, **kwargs):
            opened.append(os.fsdecode(file) if isinstance(file, (str, bytes, Path)) else "")
            return real[name](file, *args, **kwargs)

        return open_

    monkeypatch.setattr(builtins, "open", watching("builtins"))
    monkeypatch.setattr(io, "open", watching("io"))
    monkeypatch.setattr(os, "open", watching("os"))
    before = set(place.rglob("*"))
    for path in PATHS:
        path = filled(path, place)
        with server.client() as client:
            for method, address, question in requests_with(path):
                status, text = sent(client, method, address, question)
                assert status in (200, 202, 303, 307, 400, 401, 404, 405, 410, 422), (path, text)
                assert SECRET not in text and "root:" not in text
                assert_gives_no_path_away(text.replace(path, ""), place)
    outside = [name for name in opened if "secret" in name or "passwd" in name or "link" in name]
    assert not outside
    assert set(place.rglob("*")) == before


def sent(client: httpx.Client, method: str, address: str, question: dict | None):
    """Status and text of an answer; 400 where not even the client takes such an address."""
    try:
        if question is not None:
            answer = client.request(method, address, json=question)
        else:
            answer = client.request(method, address)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):
        return 400, ""
    return answer.status_code, answer.text


def assert_gives_no_path_away(text: str, place: Path) -> None:
    assert str(place) not in text and "site-packages" not in text
    assert "Traceback" not in text and not re.search(r'File "|line \d+, in', text)


def test_a_link_that_leads_out_is_not_served(client):
    names = [weight["name"] for weight in client.get("/v1/capabilities").json()["weights"]]
    assert "tiny" in names and "link" not in names


def test_an_error_of_the_server_gives_nothing_away(server, client, place, monkeypatch):
    def fail(*args: object) -> None:
        raise RuntimeError(f"{place} has failed")

    monkeypatch.setattr(server.engine, "submit", fail)
    for path, question in (
        ("/v1/jobs", {}),
        ("/v1/images/generations", {"prompt": ""}),
        ("/api/generate/df", {"weight_path": "tiny"}),
    ):
        answer = client.post(path, json=question)
        assert answer.status_code == 500 and "the server failed" in answer.text
        assert_gives_no_path_away(answer.text, place)


# --- Hosts, origins, content types ---


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("localhost@evil.example", 403),
        ("", 403),
        ("[", 403),
        ("localhost/x", 403),
    ],
)
def test_the_host_must_be_this_server(client, host, status):
    answer = client.get("/v1/capabilities", headers={"Host": host})
    assert answer.status_code == status


def test_a_host_that_is_none_is_refused_even_where_any_is_allowed(place):
    with Served(place / "weights", hosts=("*",)) as server, server.client() as client:
        assert client.get("/readyz", headers={"Host": "any.example"}).status_code == 200
        for host in ("[", "a b", "a/b", "a?b", "a#b"):
            assert client.get("/readyz", headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_site_cannot_ask(client, server, origin):
    before = server.engine.statistics.submitted
    for path in ("/v1/jobs", "/v1/images/generations", "/api/generate/df", "/login"):
        answer = client.post(path, json={}, headers={"Origin": origin})
        assert answer.status_code == 403
    assert server.engine.statistics.submitted == before
    answer = client.get("/v1/capabilities", headers={"Origin": origin})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_of_another_site_cannot_have_work_done_by_reading(client):
    other = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/v1/capabilities", headers=other).status_code == 403
    frame = {**other, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert client.get("/v1/capabilities", headers=frame).status_code == 403
    link = {**frame, "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=link).status_code == 200
    own = {**other, "Sec-Fetch-Site": "same-origin"}
    assert client.get("/v1/capabilities", headers=own).status_code == 200


def test_the_servers_own_page_can_ask(client, server):
    answer = client.post("/v1/jobs", json={"sample_steps": 1}, headers={"Origin": server.url})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_can_send_is_refused(client, kind):
    for path in ("/v1/jobs", "/v1/images/generations", "/api/generate/df"):
        answer = client.post(path, content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_no_preflight_is_answered(client):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/v1/jobs", headers=headers)
    assert answer.status_code in (403, 405)
    assert not [name for name in answer.headers if name.startswith("access-control")]


# --- Tokens ---


def test_the_job_of_another_token_is_not_there(place):
    with Served(place / "weights", tokens=("one", "two")) as server:
        with server.client("one") as one, server.client("two") as two:
            job = server.post_job(one, weight="tiny", sample_steps=1)
            wait_until(lambda: one.get(f"/v1/jobs/{job}").json()["status"] == "completed")
            assert one.get(f"/v1/jobs/{job}/images/0").status_code == 200
            for path in ("", "/images/0", "/events"):
                assert two.get(f"/v1/jobs/{job}{path}").status_code == 404
            assert two.post(f"/v1/jobs/{job}/cancel").status_code == 404
            assert two.get("/v1/jobs").json()["jobs"] == []
            assert [each["id"] for each in one.get("/v1/jobs").json()["jobs"]] == [job]


def test_without_a_token_there_is_nothing(place):
    with Served(place / "weights", tokens=("one",)) as server, server.client() as client:
        for path in ("/v1/jobs", "/v1/models", "/v1/capabilities", "/metrics", "/openapi.json"):
            answer = client.get(path)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer", "Bearer two", "bearer", "Basic one", "Bearer öne", "one"):
            headers = {"Authorization": wrong.encode()}
            assert client.get("/v1/jobs", headers=headers).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_the_page_logs_in_with_a_cookie(place):
    with Served(place / "weights", tokens=("one",)) as server, server.client() as client:
        assert client.post("/login", json={"token": "two"}).status_code == 401
        answer = client.post("/login", json={"token": "one"})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.get("/v1/jobs").status_code == 200
        # and whatever other programs on this machine have set beside it
        (name, value) = next(iter(client.cookies.items()))
        client.cookies.clear()
        for others in ('prefs={"dark":true}', "x=a b", "=", 'y="'):
            headers = {"cookie": f"{others}; {name}={value}"}
            assert client.get("/v1/jobs", headers=headers).status_code == 200, others


def test_other_machines_need_a_token(place):
    with pytest.raises(AssertionError, match="add --token"):
        ServerProcess(place / "weights", "--host", "0.0.0.0")


# --- Metrics ---


def test_the_counts_are_those_of_the_client(place):
    with Served(place / "weights") as server, server.client() as client:
        for _ in range(3):
            server.post_job(client, weight="tiny", sample_steps=2)
        client.post("/v1/jobs", json={"weight": "nothing"})
        question = {"prompt": "cat", "model": "tiny", "n": 2, "sample_steps": 2}
        client.post("/v1/images/generations", json=question)
        client.get("/no/such/path")
        wait_until(lambda: not server.engine.jobs.under_way())
        lines = client.get("/metrics").text.splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    expected = {
        'http_requests_total{method="POST",route="/v1/jobs",status="202"}': 3,
        'http_requests_total{method="POST",route="/v1/jobs",status="404"}': 1,
        'http_requests_total{method="POST",route="/v1/images/generations",status="200"}': 1,
        'http_requests_total{method="other",route="other",status="404"}': 1,
        'jobs_ended_total{status="completed"}': 4,
        "jobs_submitted_total": 4,
        "jobs_under_way": 0,
        "images_made_total": 5,
    }
    assert {name: float(counts[name]) for name in expected} == expected
