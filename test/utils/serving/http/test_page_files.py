"""The files of the page over HTTP: types, headers, revalidation, and nothing besides."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

fastapi = pytest.importorskip(
    "fastapi", reason="the page is served with fastapi: pip install -r requirements-serve.txt"
)
pytest.importorskip("httpx", reason="fastapi's test client needs httpx: pip install httpx")

from fastapi.testclient import TestClient  # noqa: E402  # after what says that it is missing

from utils.serving.http.page import PAGE_FOLDER, build_router  # noqa: E402


@pytest.fixture
def client() -> TestClient:
    app = fastapi.FastAPI()
    app.include_router(build_router())
    return TestClient(app)


def files() -> list[str]:
    return [
        file.relative_to(PAGE_FOLDER).as_posix()
        for file in sorted(PAGE_FOLDER.rglob("*"))
        if file.is_file()
    ]


def test_every_file_is_served_with_its_type_and_the_policy(client):
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in files():
        answer = client.get("/" if name == "index.html" else f"/page/{name}")
        assert answer.status_code == 200, name
        assert answer.content == (PAGE_FOLDER / name).read_bytes()
        expected = types.get(Path(name).suffix, "text/")
        assert answer.headers["content-type"].startswith(expected), name
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_known_version_is_not_sent_again(client):
    first = client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for given in (etag, f"W/{etag}", f'"other", {etag}'):
        again = client.get("/page/main.js", headers={"If-None-Match": given})
        assert again.status_code == 304
        assert again.content == b""
        assert "content-security-policy" in again.headers
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/../../../utils/errors.py",
        "/page/%2e%2e/http/page.py",
        "/page/..%2fhttp%2fpage.py",
        "/page//etc/passwd",
        "/page/",
        "/page/lib",
        "/page/index.html%00.js",
    ],
)
def test_no_address_leads_elsewhere(client, path):
    assert client.get(path).status_code == 404, unquote(path)


def test_the_page_names_no_other_host():
    """Texts of the page's own files; uPlot's name their author's page in a comment."""
    for name in files():
        if name.startswith("vendor/"):
            continue
        text = (PAGE_FOLDER / name).read_text(encoding="utf-8")
        hosts = set(re.findall(r"https?://[\w.]+", text))
        assert hosts <= {"http://www.w3.org"}, name  # the namespace of SVG


def test_texts_of_the_server_never_become_markup():
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    for name in files():
        if not name.endswith(".js") or name.startswith("vendor/"):
            continue
        text = (PAGE_FOLDER / name).read_text(encoding="utf-8")
        assert not any(word in text for word in forbidden), name


def test_uplot_lies_beside_its_licence():
    licence = (PAGE_FOLDER / "vendor" / "uPlot" / "LICENSE").read_text()
    assert "MIT License" in licence
    assert "Leon Sorokin" in licence
