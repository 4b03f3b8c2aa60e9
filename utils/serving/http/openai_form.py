"""What clients of the OpenAI images API send and get. The words are that API's."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from utils.serving.http.fields import (
    ClassNumber,
    Count,
    Frames,
    Name,
    PartialImages,
    SamplerName,
    Scale,
    Seed,
)
from utils.serving.prompt import LONGEST_PROMPT, class_of_prompt
from utils.serving.refusal import invalid
from utils.serving.requests import FILM_FORMAT, Asked
from utils.serving.weights import Weight

DEFAULT_FRAMES = 9  # of a GIF
AUTO = "auto"
SIZE_PATTERN = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"

# Field of `Asked` -> the same in this API.
NAMES = {
    "weight": "model",
    "num_images": "n",
    "image_size": "size",
    "image_format": "output_format",
    "sample": "sampler",
    "sample_steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
}


class ImagesQuestion(BaseModel):
    """What to make. Fields of the OpenAI API that are not named here, such as quality, style,
    moderation and user, change nothing; those below the line are not in that API.
    """

    model_config = ConfigDict(strict=True)

    prompt: str = Field(
        max_length=LONGEST_PROMPT,
        description="a class's name or number, or a text that names one class; empty or "
        "'random': all classes in turn",
    )
    model: Name | None = Field(default=None, description="name of a served weight")
    n: Count | None = None
    size: str | None = Field(
        default=None, pattern=SIZE_PATTERN, description="WIDTHxHEIGHT, or auto: that of training"
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description="b64_json if not set"
    )
    output_format: Literal["png", "webp", "jpeg", "gif"] | None = Field(
        default=None, description="gif: the denoising as an animation; png if not set"
    )
    frame_count: Frames | None = Field(default=None, description="of a GIF")
    frame_duration_ms: Literal[80] | None = None
    stream: bool | None = None
    partial_images: PartialImages | None = None
    background: Literal["opaque", "auto"] | None = None
    output_compression: Literal[100] | None = None
    # --- Not in the OpenAI API ---
    class_name: Name | ClassNumber | None = Field(
        default=None, description="name or number of a class, instead of the prompt"
    )
    seed: Seed | None = Field(default=None, description="of the first image")
    sampler: SamplerName | None = None
    num_inference_steps: Count | None = None
    sample_steps: Count | None = Field(default=None, description="the same")
    guidance_scale: Scale | None = Field(default=None, description="1: none")
    cfg_scale: Scale | None = Field(default=None, description="the same")
    upscale: Name | None = Field(default=None, description="name of a served upscaler")

    def asked(self, weight: Weight) -> Asked:
        """Raises Refusal for what cannot be made together."""
        is_film = self.output_format == FILM_FORMAT
        self._check_stream(is_film)
        if self.frame_count is not None and not is_film:
            raise invalid("frame_count belongs to output_format gif", "frame_count")
        snapshots = (self.partial_images or 0) if self.stream else 0
        if is_film:
            snapshots = (self.frame_count or DEFAULT_FRAMES) - 1  # the last frame is the image
        steps = _either(self, "num_inference_steps", "sample_steps")
        cfg_scale = _either(self, "guidance_scale", "cfg_scale")
        return Asked(
            weight=weight.name,
            class_name=self._class_name(weight),
            num_images=self.n,
            sample=self.sampler,
            sample_steps=steps,
            cfg_scale=cfg_scale,
            seed=self.seed,
            image_size=_size(self.size),
            image_format=self.output_format or "png",
            upscale=self.upscale,
            snapshots=snapshots,
            snapshots_of_noise=is_film,
        )

    def _check_stream(self, is_film: bool) -> None:
        if self.stream and is_film:
            raise invalid("a GIF is not streamed: leave stream out", "stream")
        if self.stream and self.response_format == "url":
            raise invalid("response_format is b64_json in a stream", "response_format")
        if self.partial_images and not self.stream:
            raise invalid("partial_images needs stream: true", "partial_images")

    def _class_name(self, weight: Weight) -> str | None:
        if self.class_name is None:
            return class_of_prompt(self.prompt, weight.classes)
        return str(self.class_name)


def _either(question: ImagesQuestion, name: str, other: str):
    """The value of a field that has two names. Raises Refusal where they differ."""
    value = getattr(question, name)
    same = getattr(question, other)
    if value is not None and same is not None and value != same:
        raise invalid(f"{name} and {other} mean the same: give one of them", name)
    return same if value is None else value


def _size(text: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT -> (H, W)."""
    if text is None or text == AUTO:
        return None
    width, height = text.split("x")
    return int(height), int(width)


# --- Answers ---


class TokenDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """There are no tokens here: all zero, as clients expect the fields."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class ImageData(BaseModel):
    """An image in one of two forms, and what it is beyond that API: its class and its seed."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(default=None, description="the class")
    seed: int


class ImagesAnswer(BaseModel):
    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "webp", "jpeg", "gif"]
    size: str
    usage: Usage = Usage()


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]
