"""The article's service over HTTP: {code, msg, data}, with a JSON text as its data."""

import base64
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from utils.serving.article import (
    BASE64,
    NAMES,
    URL,
    ArticleQuestion,
    Path,
    article_request,
    as_text,
    encoded,
    image_list,
    weight_of_path,
)
from utils.serving.enlarging import Enlarger
from utils.serving.http.asking import Asking
from utils.serving.http.errors import answers, error_response, refusal_of_malformed
from utils.serving.http.links import image_url
from utils.serving.http.watching import end_of
from utils.serving.refusal import UNAVAILABLE, Refusal, invalid, not_found, renamed
from utils.serving.services import Services, look_at_weights
from utils.serving.weights import UPSCALER

GREETING = "Hello, IDDM!"
SUCCESS = "success!"


class ArticleAnswer(BaseModel):
    """What every request is answered with; `code` is also the HTTP status."""

    code: int
    msg: str
    data: str | None = Field(description="a JSON text: {image: [{image_id, type, image}], type}")


class EnlargeQuestion(BaseModel):
    """An image to be enlarged."""

    model_config = ConfigDict(strict=True)

    image: str = Field(description="a PNG, JPEG or WebP file, as base64")
    weight_path: Path | None = Field(
        default=None, description="its last part, without .pt, is the name of an upscaler"
    )
    result_path: Path | None = None
    type: Literal["base64"] = BASE64


class ArticleRoute(APIRoute):
    """A route that answers errors in the article's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                return _error(refusal_of_malformed(error, 400))
            except HTTPException as error:
                if error.status_code != 400:
                    raise
                return _error(invalid("the body is no JSON"))
            except Refusal as refusal:
                return _error(renamed(refusal, NAMES))

        return handle


class GreetingRoute(APIRoute):
    """Only for who asks for JSON: a browser gets the page at the same address."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        headers = dict(scope.get("headers", []))
        accepted = headers.get(b"accept", b"").lower()
        if b"application/json" not in accepted or b"text/html" in accepted:
            return Match.NONE, {}
        return super().matches(scope)


def _error(refusal: Refusal) -> Response:
    """As any other error answers, but for the body."""
    headers = {
        name: value
        for name, value in error_response(refusal).headers.items()
        if name not in ("content-length", "content-type")
    }
    content = {"code": refusal.status, "msg": refusal.message, "data": None}
    return JSONResponse(content, refusal.status, headers)


def _answers(*statuses: int) -> dict[int | str, dict]:
    documented = answers(*statuses)
    return {
        status: {**answer, "model": ArticleAnswer} if status in statuses else answer
        for status, answer in documented.items()
    }


def build_router(services: Services) -> APIRouter:
    """POST /api/generate/df and /api/generate/sr; GET / for who accepts JSON."""
    router = APIRouter(tags=["article"], route_class=ArticleRoute)
    engine = services.engine
    enlarger = Enlarger(engine.precision, services.limits, lambda: engine.is_ending)

    @router.post("/api/generate/df", responses=_answers(400, 404, 409, 429, 500, 503, 504))
    async def generate(
        question: ArticleQuestion, request: Request, client: Asking
    ) -> ArticleAnswer:
        """Images of a diffusion."""
        generation = await article_request(question, services)
        job = engine.submit(generation, client, is_kept=question.type == URL)
        await end_of(job, engine, request)
        places = range(generation.count)
        if question.type == URL:
            images = [image_url(job, place, request, services) for place in places]
        else:
            images = [encoded(engine.image(job, place)) for place in places]
        data = as_text(image_list(job.id, images, question.type))
        return ArticleAnswer(code=200, msg=SUCCESS, data=data)

    @router.post("/api/generate/sr", responses=_answers(400, 404, 429, 500, 503, 504))
    async def enlarge(question: EnlargeQuestion, client: Asking) -> ArticleAnswer:
        """An image, enlarged by an upscaler."""
        if not engine.is_ready:
            raise Refusal(503, "the server is about to end", UNAVAILABLE, retry_after=10)
        if question.weight_path is None:
            await look_at_weights(services)
            upscalers = services.weights.all(UPSCALER)
            if not upscalers:
                raise not_found("no upscaler is served", "weight_path")
            weight = upscalers[0]
        else:
            weight = await weight_of_path(question.weight_path, UPSCALER, services)
        try:
            image = base64.b64decode(question.image, validate=True)
        except ValueError:
            raise invalid("image is no base64", "image") from None
        enlarged = await enlarger.enlarged(image, weight)
        data = as_text(image_list(weight.name, [encoded(enlarged)], BASE64))
        return ArticleAnswer(code=200, msg=SUCCESS, data=data)

    greeting = GreetingRoute("/", _greet, methods=["GET"], include_in_schema=False)
    router.routes.append(greeting)
    return router


async def _greet() -> str:
    return GREETING
