"""The web service of IDDM, as the article on it has it: what the programs that were written for it
send and get, over HTTP or a socket.
"""

import base64
import json
import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from utils.class_names import ONE_OF_EACH
from utils.errors import name_list
from utils.serving.http.fields import (
    AnyNumber,
    ClassNumber,
    Count,
    Name,
    SamplerName,
    Scale,
    Seed,
    Side,
    Sides,
)
from utils.serving.refusal import invalid, not_found
from utils.serving.requests import UNKNOWN_WEIGHT, Asked, GenerationRequest, resolve
from utils.serving.services import Services, look_at_weights
from utils.serving.weights import DIFFUSION, UPSCALER, Weight, WeightStore

BASE64: Final = "base64"
URL: Final = "url"
# Field of `Asked` -> the same here.
NAMES = {"weight": "weight_path"}

Path = Annotated[str, Field(max_length=4000)]


class ArticleQuestion(BaseModel):
    """What to make. Fields that are not named here change nothing, nor do result_path, latent and
    autoencoder_ckpt: nothing is written where a client says, and weights know what they need.
    """

    model_config = ConfigDict(strict=True)

    weight_path: Path = Field(description="its last part, without .pt, is the name of a weight")
    result_path: Path | None = None
    type: Literal["base64", "url"] = BASE64
    sample: SamplerName | None = None
    image_size: Side | Sides | None = Field(
        default=None, description="a side, or height and width; that of training if not set"
    )
    num_images: AnyNumber | None = Field(default=None, description="less than 1 is 1")
    class_name: Name | ClassNumber | None = Field(
        default=None, description="name or number of a class; -1: one image of each"
    )
    use_ema: bool | None = None
    latent: bool | None = None
    autoencoder_ckpt: Path | None = None
    # --- Not in the article's service ---
    sample_steps: Count | None = None
    cfg_scale: Scale | None = None
    seed: Seed | None = None

    def asked(self, weight: Weight) -> Asked:
        size = self.image_size
        if isinstance(size, int):
            size = [size, size]
        class_name = None if self.class_name is None else str(self.class_name)
        count: int | None = max(1, self.num_images or 1)
        if class_name == ONE_OF_EACH:
            count = None
        return Asked(
            weight=weight.name,
            class_name=class_name,
            num_images=count,
            sample=self.sample,
            sample_steps=self.sample_steps,
            cfg_scale=self.cfg_scale,
            seed=self.seed,
            image_size=None if size is None else (size[0], size[1]),
            use_ema=self.use_ema,
        )


async def article_request(question: ArticleQuestion, services: Services) -> GenerationRequest:
    """What the engine is to make. Raises Refusal."""
    weight = await weight_of_path(question.weight_path, DIFFUSION, services)
    return resolve(question.asked(weight), services.weights, services.limits)


async def weight_of_path(path: str, kind: str, services: Services) -> Weight:
    """The served weight that a client means, who believes to name a file on the server.

    Its text is compared with the names of what is served, and opens nothing. Raises Refusal.
    """
    await look_at_weights(services)
    weight = _find(path, services.weights)
    if weight is None:
        served = name_list(weight.name for weight in services.weights.all(kind)) or "none"
        raise not_found(
            f"weight_path names no weight that is served; these are {served}",
            "weight_path",
            UNKNOWN_WEIGHT,
        )
    if weight.kind != kind:
        article = "an" if kind == UPSCALER else "a"
        raise invalid(f"{weight.name} is no {kind}; {article} {kind} is needed", "weight_path")
    return weight


def _find(path: str, weights: WeightStore) -> Weight | None:
    """By the last part without .pt; else by that with its folder; else by a file's name that only
    one of the weights has.
    """
    parts = [part for part in re.split(r"[/\\]", path) if part]
    if not parts:
        return None
    stem = parts[-1].removesuffix(".pt")
    weight = weights.find(stem)
    if weight is None and len(parts) > 1:
        weight = weights.find(f"{parts[-2]}:{stem}")
    return weight or weights.find_by_stem(stem)


def encoded(data: bytes) -> str:
    """Bare base64, without the beginning of a data URL."""
    return base64.b64encode(data).decode()


def image_list(name: str, images: Sequence[str], kind: str) -> dict:
    """What the article's services answer: images, each as base64 or an address."""
    return {
        "image": [
            {"image_id": f"{name}-{place}", "type": kind, "image": image}
            for place, image in enumerate(images)
        ],
        "type": kind,
    }


def as_text(answer: dict) -> str:
    return json.dumps(answer, ensure_ascii=False)
