"""From an HTTP request to the engine's: who asks, and what for."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from fastapi import Depends, Request

from utils.serving.jobs import Client
from utils.serving.requests import Asked, GenerationRequest, resolve, weight_of
from utils.serving.services import Services, look_at_weights
from utils.serving.weights import Weight

# Pictures are decoded one at a time; who waits for that must not keep others from asyncio's threads
DECODING = ThreadPoolExecutor(2, thread_name_prefix="decoding")


async def client_of(request: Request) -> Client:
    """Who asks, as the guard has found. (Not async, it would be called in another thread.)"""
    return request.scope["client_of_job"]


Asking = Annotated[Client, Depends(client_of)]


async def resolved(asked: Asked, services: Services) -> GenerationRequest:
    """What the engine is to make, with the weights as they are now. Raises Refusal.

    Where pictures are to be decoded, in another thread: others are answered meanwhile.
    """
    await look_at_weights(services)
    if asked.has_pictures:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            DECODING, resolve, asked, services.weights, services.limits
        )
    return resolve(asked, services.weights, services.limits)


async def served_weight(name: str | None, services: Services) -> Weight:
    """The diffusion of this name, as it is now; None: the default. Raises Refusal."""
    await look_at_weights(services)
    return weight_of(name, services.weights)
