"""Several servers that clients see as one: what is about a job goes to the server that has it."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from utils.serving.http.errors import error_response
from utils.serving.http.metrics import IS_FORWARDED
from utils.serving.refusal import NOT_FOUND, Refusal

JOB_PATH = re.compile(r"/v1/jobs/([A-Za-z0-9]+)-")  # the name of the server that made the id
FORWARDED = "x-forwarded-by-server"
CONNECT_SECONDS = 3
SILENCE_SECONDS = 120  # events have a sign of life more often
OF_THE_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "upgrade")

# From a server's name to its address, such as http://127.0.0.1:8000; None: there was never one.
FindServer = Callable[[str], Awaitable[str | None]]


class ForwardJobs:
    """Middleware of the server called `name`.

    A job that no server can have had is answered by this one (404), and one whose server does not
    answer any more has gone with it (410).
    """

    def __init__(self, app: ASGIApp, name: str, find: FindServer):
        self.app = app
        self._name = name
        self._find = find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = owner_of(scope)
        if owner is None or owner == self._name:
            await self.app(scope, receive, send)
            return
        address = await self._find(owner)
        if address is None:
            await self.app(scope, receive, send)
            return
        scope[IS_FORWARDED] = True
        try:
            response = await forward(Request(scope, receive), address)
        except HTTPException as error:  # the body is too large
            response = error_response(Refusal(error.status_code, str(error.detail)))
        await response(scope, receive, send)


def owner_of(scope: Scope) -> str | None:
    """The name of the server that a request is for; None: any."""
    match = JOB_PATH.match(scope["path"]) if scope["type"] == "http" else None
    return match[1] if match else None


async def forward(request: Request, address: str) -> Response:
    """The answer of another server, which is handed on as it comes in."""
    if FORWARDED in request.headers:  # its address is this server's now
        return gone()
    headers = {name: value for name, value in request.headers.items() if is_handed_on(name)}
    headers[FORWARDED] = "1"
    path = request.url.path
    if request.url.query:
        path += f"?{request.url.query}"
    timeout = aiohttp.ClientTimeout(connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
    try:
        answer = await session.request(
            request.method,
            address + path,
            headers=headers,
            data=await request.body(),
            allow_redirects=False,
        )
    except aiohttp.ClientConnectionError:
        await session.close()
        return gone()
    except BaseException:
        await session.close()
        raise

    async def parts() -> AsyncIterator[bytes]:
        async with session, answer:
            async for part in answer.content.iter_any():
                yield part

    kept = {name: value for name, value in answer.headers.items() if is_handed_on(name)}
    return StreamingResponse(parts(), answer.status, kept)


def is_handed_on(header: str) -> bool:
    return header.lower() not in OF_THE_CONNECTION


def gone() -> Response:
    message = "the server that had this job is gone, and the job with it"
    return error_response(Refusal(410, message, NOT_FOUND, "id", "expired"))
