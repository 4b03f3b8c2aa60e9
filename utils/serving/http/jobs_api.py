"""Jobs over HTTP: ask for images, watch them come, fetch them. A job outlives its client."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Depends, Header, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from utils.editing import Wishes
from utils.pictures import encoded_image, image_grid
from utils.serving.http.asking import Asking, resolved
from utils.serving.http.errors import ErrorDetail, answers
from utils.serving.http.fields import (
    Borders,
    Count,
    Name,
    Picture,
    Repeats,
    SamplerName,
    Scale,
    Seed,
    Side,
    Sides,
    Strength,
    TwoSeeds,
)
from utils.serving.http.watching import StreamPlaces, Watch
from utils.serving.jobs import COMPLETED, Job
from utils.serving.pictures import picture_of
from utils.serving.refusal import Refusal, invalid, not_found
from utils.serving.requests import Asked
from utils.serving.services import Services

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "gif": "image/gif"}
QUIET_SECONDS = 1.0  # after which a stream looks at its job even if nobody has told it to
LARGEST_ID = 2**63  # of an event
EVENT_KINDS = ("status", "progress", "preview", "end")  # in the order of those of one version

MOST_CONDITIONS = 1000  # of which the head is looked at before anything else

Status = Literal["queued", "generating", "completed", "failed", "cancelled"]


class JobQuestion(BaseModel):
    """What to make. Everything may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    weight: Name | None = Field(default=None, description="name of a served weight")
    class_name: Name | None = Field(
        default=None,
        description="name or number of a class; -1: one image of each; none: all in turn",
    )
    num_images: Count | None = None
    sample: SamplerName | None = Field(default=None, description="sampler")
    sample_steps: Count | None = None
    cfg_scale: Scale | None = Field(default=None, description="guidance; 1: none")
    guide_scale: Scale | None = Field(
        default=None, description="autoguidance by the guide that the weight holds; 1: none"
    )
    guide_labels: bool | None = Field(
        default=None,
        description="tell the guide the class; false: led towards the class as well",
    )
    seed: Seed | None = Field(default=None, description="of the first image")
    image_size: Side | Sides | None = Field(default=None, description="a side, or height and width")
    image_format: Literal["png", "webp", "jpeg"] | None = None
    upscale: Name | None = Field(default=None, description="name of a served upscaler")
    # --- What images begin with ---
    init_image: Picture | None = Field(default=None, description="begin with this instead of noise")
    strength: Strength | None = Field(
        default=None, description="with init_image: the share of the network calls that are made"
    )
    mask: Picture | None = Field(
        default=None, description="with init_image: paint only where this is white"
    )
    repeats: Repeats = Field(
        default=1, description="with mask or outpaint: make each step so many times"
    )
    outpaint: Borders | None = Field(
        default=None, description="with init_image: paint borders, at the top, right, bottom, left"
    )
    interpolate: TwoSeeds | None = Field(
        default=None, description="from the noise of one seed to that of another"
    )
    invert: Picture | None = Field(
        default=None, description="find the noise that becomes this, and draw it from that again"
    )
    # --- What steers them ---
    condition: Picture | list[Picture] | None = Field(
        default=None, description="for weights that need some: image i takes the i-th, in turn"
    )

    def asked(self) -> Asked:
        """Raises Refusal for pictures that may not be decoded."""
        size = self.image_size
        if isinstance(size, int):
            size = [size, size]
        return Asked(
            weight=self.weight,
            class_name=self.class_name,
            num_images=self.num_images,
            sample=self.sample,
            sample_steps=self.sample_steps,
            cfg_scale=self.cfg_scale,
            guide_scale=self.guide_scale,
            guide_labels=self.guide_labels,
            seed=self.seed,
            image_size=None if size is None else (size[0], size[1]),
            image_format=self.image_format or "png",
            upscale=self.upscale,
            wishes=self._wishes(),
            conditions=self._conditions(),
        )

    def _wishes(self) -> Wishes:
        borders, seeds = self.outpaint, self.interpolate
        return Wishes(
            init_image=_picture(self.init_image, "init_image"),
            strength=self.strength,
            mask=_picture(self.mask, "mask"),
            repeats=self.repeats,
            outpaint=None if borders is None else (borders[0], borders[1], borders[2], borders[3]),
            interpolate=None if seeds is None else (seeds[0], seeds[1]),
            invert=_picture(self.invert, "invert"),
        )

    def _conditions(self) -> tuple[bytes, ...] | None:
        given = self.condition
        if given is None:
            return None
        if isinstance(given, list) and len(given) > MOST_CONDITIONS:
            raise invalid(f"condition has more than {MOST_CONDITIONS} pictures", "condition")
        return tuple(
            picture_of(text, "condition") for text in ([given] if isinstance(given, str) else given)
        )


def _picture(text: str | None, name: str) -> bytes | None:
    return None if text is None else picture_of(text, name)


class Accepted(BaseModel):
    id: str
    status: Status
    poll_url: str


class ResultImage(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    url: str
    seed: int
    class_name: str | None = Field(serialization_alias="class")
    mask_url: str | None = Field(description="of weights that make a label map with each image")
    inversion_error: float | None = Field(
        description="with invert: how much it differs, RMS as a share of the range"
    )


class Result(BaseModel):
    images: list[ResultImage]


class JobAnswer(BaseModel):
    """A job as it stands. Times are seconds since 1970."""

    id: str
    status: Status
    queue_position: int | None = Field(description="jobs before it; null: it has begun")
    step: int = Field(description="network calls done, of the image that is furthest behind")
    steps: int
    progress: float = Field(description="0 to 1")
    created: float
    started: float | None
    finished: float | None
    request: dict[str, Any]
    result: Result | None
    error: ErrorDetail | None


class JobList(BaseModel):
    jobs: list[JobAnswer]


def describe_job(job: Job, services: Services) -> JobAnswer:
    result = None
    if job.status == COMPLETED:
        has_masks = job.request.weight.makes_masks
        result = Result(
            images=[
                ResultImage(
                    url=f"/v1/jobs/{job.id}/images/{place}",
                    seed=seed,
                    class_name=job.request.class_of(place),
                    mask_url=f"/v1/jobs/{job.id}/masks/{place}" if has_masks else None,
                    inversion_error=job.about[place].get("inversion_error"),
                )
                for place, seed in enumerate(job.request.seeds)
            ]
        )
    return JobAnswer(
        id=job.id,
        status=job.status,  # type: ignore[arg-type]  # one of the five
        queue_position=services.engine.queue_position(job),
        step=job.step,
        steps=job.calls,
        progress=job.progress,
        created=job.created,
        started=job.started,
        finished=job.finished,
        request=job.request.to_dict(),
        result=result,
        error=None if job.error is None else ErrorDetail(**job.error.to_dict()),
    )


def build_router(services: Services) -> APIRouter:
    """POST and GET /v1/jobs, and what belongs to one job."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    engine = services.engine

    async def job_of(id: str, client: Asking) -> Job:
        return engine.jobs.find(id, client)

    Found = Annotated[Job, Depends(job_of)]

    @router.post("", status_code=202, responses=answers(400, 404, 422, 429, 503))
    async def submit(client: Asking, question: JobQuestion | None = None) -> Accepted:
        """Queue a job. It goes on when its client has gone."""
        request = await resolved((question or JobQuestion()).asked(), services)
        job = engine.submit(request, client)
        return Accepted(id=job.id, status="queued", poll_url=f"/v1/jobs/{job.id}")

    @router.get("", responses=answers())
    async def jobs(client: Asking) -> JobList:
        """The caller's jobs, the newest first."""
        return JobList(jobs=[describe_job(job, services) for job in engine.jobs.all_of(client)])

    @router.get("/{id}", responses=answers(404, 410))
    async def one(job: Found) -> JobAnswer:
        return describe_job(job, services)

    @router.post("/{id}/cancel", responses=answers(404, 410))
    async def cancel(job: Found) -> JobAnswer:
        """It acts within one step. A job that has ended stays as it is."""
        engine.cancel(job)
        return describe_job(job, services)

    @router.get(
        "/{id}/images/{number}",
        response_class=Response,
        responses={
            **answers(404, 410, 422),
            200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}},
        },
    )
    async def image(job: Found, number: int) -> Response:
        """An image of a completed job."""
        data = await file_of(job, number, engine.image)
        name = f"{job.request.seeds[number]}.{job.request.image_format}"
        return file_answer(data, MEDIA_TYPES[job.request.image_format], name)

    @router.get(
        "/{id}/masks/{number}",
        response_class=Response,
        responses={**answers(404, 410, 422), 200: {"content": {MEDIA_TYPES["png"]: {}}}},
    )
    async def mask(job: Found, number: int) -> Response:
        """The label map that was made with an image, a palette PNG of the labels' numbers."""
        if not job.request.weight.makes_masks:
            raise not_found("the job has no such mask", "number")
        data = await file_of(job, number, engine.mask)
        return file_answer(data, MEDIA_TYPES["png"], f"{job.request.seeds[number]}_mask.png")

    @router.get(
        "/{id}/events",
        response_class=EventSourceResponse,
        responses=answers(404, 410, 422, 429),
        dependencies=[Depends(StreamPlaces(services.limits.max_streams))],
    )
    async def events(
        job: Found,
        last_event_id: Annotated[str | None, Header(max_length=40)] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """The job as it comes: events `status`, `progress`, `preview`, `end`, with rising ids."""
        async for event in job_events(job, services, _event_id(last_event_id)):
            yield event

    return router


async def file_of(job: Job, number: int, read: Callable[[Job, int], bytes]) -> bytes:
    """A picture of a completed job. Raises Refusal."""
    if job.status != COMPLETED or not 0 <= number < job.request.count:
        raise not_found("the job has no such image", "number")
    try:
        return await asyncio.to_thread(read, job, number)
    except OSError:
        raise Refusal(410, "this job has expired", "not_found_error", "id", "expired") from None


def file_answer(data: bytes, media_type: str, name: str) -> Response:
    headers = {
        "Content-Disposition": f'inline; filename="{name}"',
        "Cache-Control": "private, max-age=3600, immutable",
    }
    return Response(data, media_type=media_type, headers=headers)


async def job_events(
    job: Job, services: Services, last_id: int = -1
) -> AsyncIterator[ServerSentEvent]:
    """What is new of a job since an event. Who is slow gets fewer events, not a backlog."""
    previewed = 0
    status = ""
    seen = last_id // len(EVENT_KINDS)  # version of the job
    with Watch(job, previews=True) as watch:
        while True:
            version = job.version
            has_ended = job.has_ended  # before it is described: it may end meanwhile
            answer = describe_job(job, services)
            if has_ended:
                yield _event("end", version, _as_json(answer))
                return
            if version > seen or not status:
                seen = version
                if answer.status != status:
                    status = answer.status
                    yield _event("status", version, _as_json(answer))
                progress = {"step": job.step, "steps": job.calls, "progress": job.progress}
                yield _event("progress", version, progress)
            if job.preview_step > previewed:
                previewed = job.preview_step
                picture = await asyncio.to_thread(preview_url, job)
                yield _event("preview", version, {"step": previewed, "image": picture})
            await watch.wait(QUIET_SECONDS)


def _as_json(answer: JobAnswer) -> dict[str, Any]:
    """The names of its fields as in other answers: an event alone would not use the aliases."""
    return answer.model_dump(mode="json", by_alias=True)


def _event(kind: str, version: int, data: Any) -> ServerSentEvent:
    """An event whose id is larger than those of all events before it."""
    number = version * len(EVENT_KINDS) + EVENT_KINDS.index(kind)
    return ServerSentEvent(event=kind, id=str(number), data=data)


def preview_url(job: Job) -> str:
    """The current estimates of a job's images in one picture, as a data URL."""
    known = [pixels for pixels in tuple(job.preview) if pixels is not None]
    if not known:
        return ""
    columns = min(4, len(known))
    data = encoded_image(image_grid(torch.stack(known), columns), ".png")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _event_id(text: str | None) -> int:
    if text is None or not text.isascii() or not text.isdecimal():
        return -1
    return min(int(text), LARGEST_ID)
