"""Who may ask what: Host, Origin, tokens and content types, before any route is reached.

A page of another site that a user has open can send requests to a server on the user's own machine.
So the Host must be one that this server is called by (against DNS rebinding), a request that
changes anything must come from no page or from this server's own (against forged requests), and
bodies are JSON, which no form of another site can send without asking.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.http.errors import error_response
from utils.serving.jobs import Client
from utils.serving.refusal import Refusal

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
TOKEN_COOKIE = "token"
READING = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/healthz", "/readyz", "/login", "/", "/favicon.ico")  # need no token
OPEN_FOLDER = "/page/"  # nor do the files of the page
OWNER_DIGITS = 16
KEY_PARAMETER = "key"  # of an address that needs no token
HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.ASCII)

AUTHENTICATION = "authentication_error"
PERMISSION = "permission_error"


class Guard:
    """Middleware that lets a request through, with its `Client` as scope["client_of_job"], or
    answers it itself.
    """

    def __init__(
        self, app: ASGIApp, tokens: Sequence[str], hosts: Sequence[str], secret: bytes = b""
    ):
        self.app = app
        self._tokens = [token.encode() for token in tokens]
        self._owners = [owner_of(token) for token in tokens]
        self._secret = secret
        self._hosts = {host.lower() for host in (*LOOPBACK, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            check_origin(scope["method"], headers)
            check_content_type(scope["method"], headers)
            owner = self._owner(scope, headers)
            if is_of_another_site(headers) and self._owner_by_key(scope) is None:
                check_site(scope["path"])  # who has an image's own address may show it
        except Refusal as refusal:
            await error_response(refusal)(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        scope["client_of_job"] = Client(owner, address)
        await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        host = host_name(headers.get("host", ""))
        is_known = "*" in self._hosts or host in self._hosts
        if not is_known or not HOST.fullmatch(host):
            message = "this server is not called by that Host; --allowed_hosts names more"
            raise Refusal(403, message, PERMISSION)

    def _owner(self, scope: Scope, headers: Headers) -> str:
        """What stands for the token of a request. Raises Refusal without a right one."""
        if not self._tokens:
            return ""
        path = scope["path"]
        given = token_of(headers)
        if given is not None and is_one_of(given, self._tokens):
            return owner_of(given)
        owner = self._owner_by_key(scope)
        if owner is not None:
            return owner
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return ""
        message = "a token is needed: Authorization: Bearer TOKEN"
        if given is not None:
            message = "the token is wrong"
        raise Refusal(401, message, AUTHENTICATION, code="invalid_api_key")

    def _owner_by_key(self, scope: Scope) -> str | None:
        """Whose image this address shows, if it holds the right key for it."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        keys = query.get(KEY_PARAMETER)
        if scope["method"] not in READING or not keys or not self._secret:
            return None
        found = None
        for owner in self._owners:
            if is_one_of(keys[0], [key_of(scope["path"], owner, self._secret).encode()]):
                found = owner
        return found


class LimitBody:
    """Middleware: no more than so many bytes of a body are read."""

    def __init__(self, app: ASGIApp, most: int):
        self.app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        if int(said) > self._most:  # the server takes numbers only
            await error_response(self._refusal())(scope, receive, send)
            return
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                refusal = self._refusal()
                raise HTTPException(refusal.status, refusal.message)
            return message

        await self.app(scope, counting, send)

    def _refusal(self) -> Refusal:
        return Refusal(413, f"a body has at most {self._most} bytes", code="body_too_large")


def owner_of(token: str) -> str:
    """What stands for a token, without giving it away."""
    return hashlib.sha256(token.encode()).hexdigest()[:OWNER_DIGITS]


def key_of(path: str, owner: str, secret: bytes) -> str:
    """What lets everyone who knows it read this path, and no other, as its owner does."""
    return hmac.new(secret, f"{owner} {path}".encode(), hashlib.sha256).hexdigest()


def host_name(host: str) -> str:
    """The Host header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def check_origin(method: str, headers: Headers) -> None:
    """Refuse what a page of another site sends, unless it only reads: that it cannot see."""
    if method in READING:
        return
    origin = headers.get("origin")
    if origin is None:
        return  # no browser
    if origin.partition("://")[2].lower() != headers.get("host", "").lower():
        raise Refusal(403, "requests from pages of other sites are refused", PERMISSION)


def is_of_another_site(headers: Headers) -> bool:
    """Whether a page of another site has the browser fetch this, which would work for it. That
    somebody follows a link is no such thing; a frame is.
    """
    is_foreign = headers.get("sec-fetch-site", "").lower() == "cross-site"
    is_link = headers.get("sec-fetch-mode", "").lower() == "navigate"
    is_whole_page = headers.get("sec-fetch-dest", "").lower() == "document"
    return is_foreign and not (is_link and is_whole_page)


def check_site(path: str) -> None:
    """Refuse what is of another site, but for what everybody may ask."""
    if path not in OPEN_PATHS:
        raise Refusal(403, "requests from pages of other sites are refused", PERMISSION)


def check_content_type(method: str, headers: Headers) -> None:
    """A body is JSON."""
    if method in READING:
        return
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if not has_body:
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "the body must be JSON, with Content-Type: application/json")


def token_of(headers: Headers) -> str | None:
    """The token that a request carries: in its Authorization, or the page's cookie."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    # Cookies of other programs on this machine come along, whatever they hold.
    return cookie_parser(headers.get("cookie", "")).get(TOKEN_COOKIE)


def is_one_of(given: str, tokens: Iterable[bytes]) -> bool:
    """Whether it is one of the tokens, in a time that says nothing about them."""
    encoded = given.encode(errors="surrogateescape")
    found = False
    for token in tokens:
        found |= hmac.compare_digest(encoded, token)
    return found
