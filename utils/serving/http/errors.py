"""How errors are answered: always as {"error": {message, type, param, code}}, without paths."""

import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.refusal import INVALID_REQUEST, NOT_FOUND, SERVER_ERROR, Refusal

# A client that tries again by itself must not do so for a job that may have been carried out. One
# that was not even taken says when to try again.
NOT_TO_BE_RETRIED = (409, 503, 504)

OPTIONS = "options"  # the field of a training's request that has fields of its own

logger = logging.getLogger("serve")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """What every request that is refused is answered with."""

    error: ErrorDetail


REASONS = {
    400: "A value cannot be used; `param` names it.",
    401: "A token is needed.",
    403: "Called by a wrong Host, or from a page of another site.",
    404: "There is no such thing, or it belongs to somebody else.",
    409: "Not possible in the present state.",
    410: "It was there, and has expired.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The body has not the form that is asked for.",
    429: "Too many jobs; Retry-After says when there may be room.",
    500: "The server failed.",
    503: "The server is about to end, or nothing is served.",
    504: "Not finished in time.",
}
ALWAYS = (401, 403, 413, 415)  # may come from any route


def answers(*statuses: int) -> dict[int | str, dict]:
    """For a route's `responses`: the errors that it may answer with, beside those of all."""
    return {
        status: {
            "model": ErrorAnswer,
            "description": REASONS[status],
            "content": {"application/json": {}},  # also where the route answers something else
        }
        for status in sorted({*statuses, *ALWAYS})
    }


def error_response(refusal: Refusal) -> JSONResponse:
    headers = {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    elif refusal.status in NOT_TO_BE_RETRIED:
        headers["x-should-retry"] = "false"
    return JSONResponse({"error": refusal.to_dict()}, refusal.status, headers)


def refusal_of_malformed(error: RequestValidationError, status: int = 422) -> Refusal:
    """What the first of its faults says."""
    first = error.errors()[0]
    field = _field(first["loc"])
    if field is None:
        return Refusal(status, f"the body: {first['msg']}", INVALID_REQUEST, None, "invalid_value")
    message = f"{field}: {first['msg']}"
    return Refusal(status, message, INVALID_REQUEST, field, "invalid_value")


def _field(location: Sequence[str | int]) -> str | None:
    """The field at ("body", "options", "epochs", ...): "options.epochs". What follows says which of
    its forms was tried.
    """
    names = [part for part in location[1:] if isinstance(part, str)]
    if not names or names[0] != location[1]:
        return None
    has_own_fields = names[0] == OPTIONS and len(names) > 1
    return f"{OPTIONS}.{names[1]}" if has_own_fields else names[0]


def add_error_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Every kind of error that one of the routes may raise, in the same form."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(refusal_of_malformed(error))

    @app.exception_handler(HTTPException)
    async def refused_by_framework(request: Request, error: HTTPException) -> JSONResponse:
        kind = NOT_FOUND if error.status_code == 404 else INVALID_REQUEST
        answer = error_response(Refusal(error.status_code, str(error.detail), kind))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        if error.status_code == 405:  # the framework names the methods of one route alone
            answer.headers["Allow"] = ", ".join(allowed_methods(request.scope, routes))
        return answer


def allowed_methods(scope: Scope, routes: Sequence[BaseRoute]) -> list[str]:
    """The methods of all routes to this path."""
    methods: set[str] = set()
    for route in routes:
        match, _ = route.matches(scope)
        if match != Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


class AnswerFailures:
    """Middleware: what nobody has thought of is logged, and answered with 500."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            logger.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if has_begun:
                raise  # the connection must end: half of an answer is none
            refusal = Refusal(500, "the server failed", SERVER_ERROR)
            await error_response(refusal)(scope, receive, send)
