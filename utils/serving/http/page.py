"""The web page: static files of the package folder `page/`, which any browser may load.

They hold no secrets, so that a browser without a token can show the field to enter one; what the
page then asks of the API is checked there.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request, Response

PAGE_FOLDER = Path(__file__).resolve().parent.parent / "page"

# Written out, since what `mimetypes` answers depends on the machine, and browsers refuse a module
# of any other type.
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",  # LICENSE
}

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# A browser keeps each file, and asks before each use whether it is still the same: a page of one
# version never runs with modules of another.
CACHE_CONTROL = "no-cache"


@dataclass(frozen=True)
class PageFile:
    """A file of the page, read when the server starts."""

    content: bytes
    content_type: str
    etag: str

    @classmethod
    def read(cls, file: Path) -> "PageFile":
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, CONTENT_TYPES[file.suffix], etag)


def build_router(services: object = None) -> APIRouter:
    """Routes to the page, at `/`, and to each of its files, below `/page/`.

    There is a route for each file that is there and no other, so no address leads out of the
    folder. `services` is not needed: the page is the same for all.
    """
    router = APIRouter(include_in_schema=False)
    for file in sorted(PAGE_FOLDER.rglob("*")):
        if not file.is_file():
            continue
        name = file.relative_to(PAGE_FOLDER).as_posix()
        address = "/" if name == "index.html" else f"/page/{name}"
        answer = partial(answer_with, PageFile.read(file))
        router.add_api_route(address, answer, methods=["GET", "HEAD"], response_class=Response)
    return router


def answer_with(file: PageFile, request: Request) -> Response:
    """The file; 304 without content where the browser has this version already."""
    headers = {**SECURITY_HEADERS, "Cache-Control": CACHE_CONTROL, "ETag": file.etag}
    if names_version(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.content_type, headers=headers)


def names_version(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match header names this version. Proxies may have made a tag weak."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags
