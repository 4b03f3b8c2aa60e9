"""From an HTTP request to the engine's: who asks, and what for."""

import asyncio
from typing import Annotated

from fastapi import Depends, Request

from utils.serving.jobs import Client
from utils.serving.refusal import Refusal
from utils.serving.requests import UNKNOWN_WEIGHT, Asked, GenerationRequest, resolve, weight_of
from utils.serving.services import Services
from utils.serving.weights import Weight


async def client_of(request: Request) -> Client:
    """Who asks, as the guard has found. (Not async, it would be called in another thread.)"""
    return request.scope["client_of_job"]


Asking = Annotated[Client, Depends(client_of)]


async def resolved(asked: Asked, services: Services) -> GenerationRequest:
    """What the engine is to make. An unknown weight may just have come: then the folders are
    looked through again. Raises Refusal.
    """
    try:
        return await _resolved(asked, services)
    except Refusal as refusal:
        if refusal.code != UNKNOWN_WEIGHT:
            raise
    await asyncio.to_thread(services.weights.scan_if_changed)
    return await _resolved(asked, services)


async def _resolved(asked: Asked, services: Services) -> GenerationRequest:
    """Where pictures are to be decoded, in another thread: others are answered meanwhile."""
    if asked.has_pictures:
        return await asyncio.to_thread(resolve, asked, services.weights, services.limits)
    return resolve(asked, services.weights, services.limits)


async def served_weight(name: str | None, services: Services) -> Weight:
    """The diffusion of this name, which may just have come; None: the default. Raises Refusal."""
    try:
        return weight_of(name, services.weights)
    except Refusal as refusal:
        if refusal.code != UNKNOWN_WEIGHT:
            raise
    await asyncio.to_thread(services.weights.scan_if_changed)
    return weight_of(name, services.weights)
