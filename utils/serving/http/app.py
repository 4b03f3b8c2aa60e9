"""The HTTP application: every API, behind the same guard, with errors in one form."""

import contextlib
from collections.abc import AsyncIterator, Sequence

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
from utils.serving.http.security import Guard, LimitBody
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
    add_error_handlers(app)
    app.include_router(jobs_api.build_router(services))
    app.include_router(article_api.build_router(services))
    app.include_router(openai_api.build_router(services))
    app.include_router(server_api.build_router(services, metrics))
    app.include_router(page.build_router(services))
    if services.training is not None:
        app.include_router(training_api.build_router(services))
    for router in more:
        app.include_router(router)
    # The one that is added last sees a request first.
    app.add_middleware(LimitBody, most=services.limits.max_body)
    app.add_middleware(Guard, tokens=services.tokens, hosts=services.hosts, secret=services.secret)
    app.add_middleware(AnswerFailures)
    app.add_middleware(CountRequests, metrics=metrics)
    return app
