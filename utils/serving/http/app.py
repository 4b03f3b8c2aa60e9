"""The HTTP application: every API, behind the same guard, with errors in one form."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI

from utils.serving.http import (
    article_api,
    jobs_api,
    openai_api,
    page,
    server_api,
    training_api,
)
from utils.serving.http.errors import AnswerFailures, add_error_handlers
from utils.serving.http.metrics import CountRequests, Metrics
from utils.serving.http.security import OPEN_PATHS, Guard, LimitBody
from utils.serving.services import Services
from utils.serving.socket_service import SocketService

TITLE = "Image diffusion"
VERSION = "1"


def build_app(
    services: Services,
    more: Sequence[APIRouter] = (),
    socket_service: SocketService | None = None,
) -> FastAPI:
    """The application of a server. `more` are further APIs; the socket service runs as long as the
    application does.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if socket_service is None:
            yield
            return
        async with socket_service.running():
            yield

    app = FastAPI(
        title=TITLE,
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from other hosts
        redoc_url=None,
    )
    metrics = Metrics(services.engine)
    routers = [
        jobs_api.build_router(services),
        article_api.build_router(services),
        openai_api.build_router(services),
        server_api.build_router(services, metrics),
        page.build_router(services),
        *more,
    ]
    if services.training is not None:
        routers.append(training_api.build_router(services))
    for router in routers:
        app.include_router(router)
    add_error_handlers(app, [route for router in routers for route in router.routes])
    if services.tokens:
        document_tokens(app)
    # The one that is added last sees a request first.
    app.add_middleware(LimitBody, most=services.limits.max_body)
    app.add_middleware(Guard, tokens=services.tokens, hosts=services.hosts, secret=services.secret)
    app.add_middleware(AnswerFailures)
    app.add_middleware(CountRequests, metrics=metrics)
    return app


def document_tokens(app: FastAPI) -> None:
    """Let the schema say that every route needs a token, but for those that are open."""
    described = app.openapi

    def with_tokens() -> dict[str, Any]:
        schema = described()
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        schema["components"]["securitySchemes"] = schemes
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN_PATHS else [{"token": []}]
        return schema

    app.openapi = with_tokens  # type: ignore[method-assign]
