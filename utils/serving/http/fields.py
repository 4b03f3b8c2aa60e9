"""Kinds of fields that several APIs have."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 4.0 is a whole number too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1, le=2**31)]
Side = Annotated[Whole, Field(ge=1, le=2**16)]  # pixels
Sides = Annotated[list[Side], Field(min_length=2, max_length=2)]  # height and width
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]
Scale = Annotated[float, Field(ge=0, le=100)]  # of guidance
Name = Annotated[str, Field(max_length=500)]
