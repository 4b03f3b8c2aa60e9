"""What the server says about itself: capabilities, health, metrics; and the page's login."""

from dataclasses import asdict

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from model.condition import Condition, LabelCondition
from model.samplers import SAMPLERS
from utils.guidance_choice import USUAL_CFG_SCALE
from utils.image_facts import LABEL_MAP, mode_of
from utils.serving.http.errors import answers
from utils.serving.http.metrics import Metrics
from utils.serving.http.security import AUTHENTICATION, TOKEN_COOKIE, is_one_of
from utils.serving.refusal import UNAVAILABLE, Refusal
from utils.serving.requests import (
    DEFAULT_IMAGES,
    IMAGE_FORMATS,
    usual_steps,
)
from utils.serving.services import Services
from utils.serving.weights import UPSCALER, Weight

COOKIE_SECONDS = 30 * 24 * 3600


class ConditionAnswer(BaseModel):
    """What steers the images of a weight."""

    kind: str = Field(description="labels or picture")
    labels: list[int] | None = Field(description="of label maps: the numbers that it knows")
    mode: str = Field(description="P (label map), L (grey) or RGB")


class GuidanceAnswer(BaseModel):
    cfg_scale: float
    guide_scale: float
    guide_labels: bool = Field(description="whether the guide is told the classes")


class WeightAnswer(BaseModel):
    """A served weight: all that a client needs to ask for images of it."""

    name: str
    kind: str = Field(description="diffusion or upscaler")
    classes: list[str]
    image_size: list[int] = Field(description="height and width of training")
    mode: str = Field(description="L (grey), RGB, RGBA or I;16 (grey of 16 bits)")
    downsample_factor: int = Field(description="what the sides must be divisible by")
    sampler: str
    sample_steps: int | None = Field(description="that it takes where nobody says how many")
    guidance: bool = Field(description="whether cfg_scale may be other than 1")
    guide: bool = Field(description="whether guide_scale may be other than 1")
    usual_guidance: GuidanceAnswer = Field(description="what it takes where nobody says what")
    noise_steps: int
    condition: ConditionAnswer | None = Field(description="the images that its images need")
    masks: bool = Field(description="whether it makes a label map with each image")
    scale: int | None = Field(description="of an upscaler")
    run: str | None = Field(description="the run that it is of")


class Capabilities(BaseModel):
    name: str
    weights: list[WeightAnswer]
    default_weight: str | None
    samplers: list[str]
    image_formats: list[str]
    upscalers: list[str]
    limits: dict[str, float]
    defaults: dict[str, float | int | str | None]
    features: dict[str, bool]


class Health(BaseModel):
    status: str


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    token: str = Field(max_length=1000)


def describe_weight(weight: Weight) -> WeightAnswer:
    return WeightAnswer(
        name=weight.name,
        kind=weight.kind,
        classes=list(weight.classes),
        image_size=list(weight.image_size),
        mode=weight.mode,
        downsample_factor=weight.downsample_factor,
        sampler=weight.sampler,
        sample_steps=usual_steps(weight),
        guidance=weight.is_guided,
        guide=weight.has_guide,
        usual_guidance=GuidanceAnswer(**asdict(weight.guidable.choose(None, None, None))),
        noise_steps=weight.noise_steps,
        condition=None if weight.condition is None else describe_condition(weight.condition),
        masks=weight.makes_masks,
        scale=weight.scale,
        run=weight.run,
    )


def describe_condition(condition: Condition) -> ConditionAnswer:
    if isinstance(condition, LabelCondition):
        return ConditionAnswer(kind=condition.name, labels=condition.values, mode=LABEL_MAP)
    mode = mode_of(condition.planes)
    return ConditionAnswer(kind=condition.name, labels=None, mode=mode)


def describe_server(services: Services) -> Capabilities:
    default = services.weights.default()
    return Capabilities(
        name=services.name,
        weights=[describe_weight(weight) for weight in services.weights.all()],
        default_weight=default.name if default else None,
        samplers=list(SAMPLERS),
        image_formats=list(IMAGE_FORMATS),
        upscalers=[weight.name for weight in services.weights.all(UPSCALER)],
        limits=services.limits.to_dict(),
        defaults={
            "num_images": DEFAULT_IMAGES,
            "cfg_scale": USUAL_CFG_SCALE,
            "image_format": IMAGE_FORMATS[0],
        },
        features={"training": services.training is not None, "token": bool(services.tokens)},
    )


def build_router(services: Services, metrics: Metrics) -> APIRouter:
    """/v1/capabilities, /healthz, /readyz, /metrics, /login."""
    router = APIRouter(tags=["server"])

    @router.get("/v1/capabilities", responses=answers())
    def capabilities() -> Capabilities:
        """Weights, classes, sizes, samplers, limits and defaults."""
        services.weights.scan_if_changed()
        return describe_server(services)

    @router.get("/healthz", responses=answers())
    async def healthz() -> Health:
        """Whether the process lives."""
        return Health(status="ok")

    @router.get("/readyz", responses=answers(503))
    async def readyz() -> Health:
        """Whether it takes jobs."""
        if not services.engine.is_ready:
            raise Refusal(503, "not ready", UNAVAILABLE)
        return Health(status="ready")

    @router.get("/metrics", response_class=PlainTextResponse, responses=answers())
    async def prometheus() -> Response:
        """Counts and times, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.post("/login", status_code=204, responses=answers(400, 422))
    async def login(login: Login) -> Response:
        """Give the page its token, as a cookie that no script can read."""
        tokens = [token.encode() for token in services.tokens]
        if tokens and not is_one_of(login.token, tokens):
            raise Refusal(401, "the token is wrong", AUTHENTICATION, "token")
        answer = Response(status_code=204)
        if tokens:
            answer.set_cookie(
                TOKEN_COOKIE,
                login.token,
                max_age=COOKIE_SECONDS,
                httponly=True,
                samesite="strict",
            )
        return answer

    return router
