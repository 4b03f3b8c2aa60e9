"""The images API of OpenAI: its clients work with this server when they are given its address."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from fastapi.sse import format_sse_event

from utils.pictures import encoded_image, to_picture
from utils.serving.http.asking import Asking, resolved, served_weight
from utils.serving.http.errors import answers, refusal_of_malformed
from utils.serving.http.links import image_url
from utils.serving.http.openai_form import (
    NAMES,
    ImageData,
    ImagesAnswer,
    ImagesQuestion,
    ModelAnswer,
    ModelList,
    Usage,
)
from utils.serving.http.watching import LOOK_AT_CLIENT, Watch, check_success, end_of
from utils.serving.jobs import Job, Snapshot
from utils.serving.refusal import Refusal, not_found, renamed
from utils.serving.requests import UNKNOWN_WEIGHT, GenerationRequest
from utils.serving.services import Services, look_at_weights
from utils.serving.weights import DIFFUSION, Weight

OWNER = "local"  # of all models
QUALITY = "auto"  # there are no others; events must say one
EVENT_STREAM = "text/event-stream"
PING = b": ping\n\n"  # a comment, which keeps a quiet connection open
SECONDS_BETWEEN_PINGS = 15.0


class OpenAIRoute(APIRoute):
    """A route whose malformed requests are answered with 400, as that API does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                raise refusal_of_malformed(error, 400) from None

        return handle


def build_router(services: Services) -> APIRouter:
    """POST /v1/images/generations and GET /v1/models."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=OpenAIRoute)
    engine = services.engine

    @router.post(
        "/images/generations",
        response_model=ImagesAnswer,
        response_model_exclude_none=True,
        responses={
            **answers(400, 404, 409, 429, 500, 503, 504),
            200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}},
        },
    )
    async def generations(question: ImagesQuestion, request: Request, client: Asking) -> Any:
        """Images as they are asked for; the request lasts until they are there.

        With `stream` the answer is a stream of events: image_generation.partial_image and
        image_generation.completed.
        """
        generation = await _generation(question, services)
        is_kept = question.response_format == "url"
        job = engine.submit(generation, client, is_kept)
        if question.stream:
            return StreamingResponse(stream_of(job, services, request), media_type=EVENT_STREAM)
        await end_of(job, engine, request)
        if is_kept:
            images = [
                ImageData(url=image_url(job, place, request, services), **_about(job, place))
                for place in range(generation.count)
            ]
        else:
            images = [
                ImageData(b64_json=_encoded(engine.image(job, place)), **_about(job, place))
                for place in range(generation.count)
            ]
        return ImagesAnswer(
            created=int(job.created),
            data=images,
            output_format=generation.image_format,  # type: ignore[arg-type]  # one of the four
            size=size_of(generation),
        )

    @router.get("/models", responses=answers())
    async def models(client: Asking) -> ModelList:
        """The weights that make images, and their other names."""
        await asyncio.to_thread(services.weights.scan_if_changed)
        names = {weight.name: weight for weight in services.weights.all(DIFFUSION)}
        for alias, name in services.aliases.items():
            weight = services.weights.find(name)
            if weight is not None and weight.is_diffusion:
                names.setdefault(alias, weight)
        return ModelList(data=[_model(name, weight) for name, weight in names.items()])

    @router.get("/models/{id}", responses=answers(404))
    async def model(id: str, client: Asking) -> ModelAnswer:
        """One of them."""
        try:
            return _model(id, await _weight(id, services))
        except Refusal as refusal:
            raise not_found(refusal.message, "model", UNKNOWN_WEIGHT) from None

    return router


async def _weight(name: str | None, services: Services) -> Weight:
    """The weight of a name or an alias."""
    await look_at_weights(services)
    if name is not None and services.weights.find(name) is None:
        name = services.aliases.get(name, name)
    return await served_weight(name, services)


async def _generation(question: ImagesQuestion, services: Services) -> GenerationRequest:
    """What the engine is to make. Raises Refusal, in the words of this API."""
    try:
        weight = await _weight(question.model, services)
        return await resolved(question.asked(weight), services)
    except Refusal as refusal:
        raise renamed(refusal, NAMES) from None


def _model(name: str, weight: Weight) -> ModelAnswer:
    seconds = weight.stamp[0] // 10**9  # when the file was written
    return ModelAnswer(id=name, created=seconds, owned_by=OWNER)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _about(job: Job, place: int) -> dict[str, Any]:
    """What is known of an image beyond the OpenAI API."""
    return {"revised_prompt": job.request.class_of(place), "seed": job.request.seeds[place]}


def size_of(request: GenerationRequest) -> str:
    """WIDTHxHEIGHT of the images that come out."""
    scale = 1 if request.upscaler is None else request.upscaler.scale or 1
    height, width = request.image_size
    return f"{width * scale}x{height * scale}"


# --- Streams ---


async def stream_of(job: Job, services: Services, request: Request) -> AsyncIterator[bytes]:
    """The events of a job: each image's partial images as they come, then all images.

    A client that goes takes its job with it.
    """
    engine = services.engine
    sent = [0] * job.request.count  # partial images of each image
    last_sign = time.monotonic()
    try:
        with Watch(job) as watch:
            while not job.has_ended:
                async for event in _new_partial_images(job, sent):
                    last_sign = time.monotonic()
                    yield event
                if time.monotonic() - last_sign > SECONDS_BETWEEN_PINGS:
                    last_sign = time.monotonic()
                    yield PING
                await watch.wait(LOOK_AT_CLIENT)
                if await request.is_disconnected():
                    return
        async for event in _new_partial_images(job, sent):
            yield event
        check_success(job)
        for place in range(job.request.count):
            yield _completed(job, place, engine.image(job, place))
    except Refusal as refusal:
        yield _event("error", {"error": refusal.to_dict()})
    finally:
        engine.cancel(job)  # which changes nothing where it has ended


async def _new_partial_images(job: Job, sent: list[int]) -> AsyncIterator[bytes]:
    for place, snapshots in enumerate(job.snapshots):
        for snapshot in tuple(snapshots)[sent[place] :]:
            data = await asyncio.to_thread(_partial_image, job, snapshot)
            about = _about_event(job, place, data)
            height, width = job.request.image_size
            about |= {"partial_image_index": sent[place], "size": f"{width}x{height}"}
            sent[place] += 1
            yield _event("image_generation.partial_image", about)


def _partial_image(job: Job, snapshot: Snapshot) -> bytes:
    return encoded_image(to_picture(snapshot.pixels), f".{job.request.image_format}")


def _completed(job: Job, place: int, data: bytes) -> bytes:
    about = _about_event(job, place, data)
    usage = Usage().model_dump()
    return _event("image_generation.completed", {**about, **_about(job, place), "usage": usage})


def _about_event(job: Job, place: int, data: bytes) -> dict[str, Any]:
    return {
        "b64_json": _encoded(data),
        "background": "opaque",
        "created_at": int(job.created),
        "image_index": place,  # not in the OpenAI API, whose events do not tell images apart
        "output_format": job.request.image_format,
        "quality": QUALITY,
        "size": size_of(job.request),
    }


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=kind, data_str=json.dumps({"type": kind, **data}))
