"""Kinds of fields that several APIs have."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 4.0 is a whole number too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


AS_WHOLE = BeforeValidator(_whole)  # behind the bounds: the schema shows what stands before it

Count = Annotated[int, Field(ge=1, le=2**31), AS_WHOLE]
Frames = Annotated[int, Field(ge=2, le=16), AS_WHOLE]
PartialImages = Annotated[int, Field(ge=0, le=3), AS_WHOLE]
ClassNumber = Annotated[int, Field(ge=-1, le=2**31), AS_WHOLE]
AnyNumber = Annotated[int, Field(ge=-(2**31), le=2**31), AS_WHOLE]
Side = Annotated[int, Field(ge=1, le=2**16), AS_WHOLE]  # pixels
Sides = Annotated[list[Side], Field(min_length=2, max_length=2)]  # height and width
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), AS_WHOLE]
Strength = Annotated[float, Field(gt=0, le=1)]
Repeats = Annotated[int, Field(ge=1, le=100), AS_WHOLE]
Border = Annotated[int, Field(ge=0, le=2**16), AS_WHOLE]  # pixels
Borders = Annotated[list[Border], Field(min_length=4, max_length=4)]  # top, right, bottom, left
TwoSeeds = Annotated[list[Seed], Field(min_length=2, max_length=2)]
Picture = Annotated[str, Field(description="base64 of a PNG, JPEG or WebP file, or its data URL")]
Scale = Annotated[float, Field(ge=0, le=100)]  # of guidance
SamplerName = Literal["ddpm", "ddim", "plms", "dpmpp2m", "unipc"]  # those of SAMPLERS
Name = Annotated[str, Field(max_length=500)]
