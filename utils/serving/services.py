"""What the protocols (HTTP, socket) share: one of each, made by tools/serve.py."""

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from utils.serving.engine import Engine
from utils.serving.limits import Limits
from utils.serving.weights import WeightStore

if TYPE_CHECKING:
    from utils.serving.processes import Trainings


@dataclass
class Services:
    """The parts of a server."""

    engine: Engine
    weights: WeightStore
    limits: Limits
    name: str = ""  # of this replica
    tokens: tuple[str, ...] = ()  # empty: everyone may ask
    hosts: tuple[str, ...] = ()  # names that this server is called by, beside this machine's own
    aliases: dict[str, str] = field(default_factory=dict)  # in the images API -> of a weight
    training: "Trainings | None" = None  # None: no training over this server
    # Makes the keys of addresses that need no token; they end with the server, as its jobs do.
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def end_streams(self) -> None:
        """The streams that would go on for ever end: the server is about to."""
        if self.training is not None:
            self.training.is_closing.set()


async def look_at_weights(services: Services) -> None:
    """Know the weights as they are now, or were within the last second: a training saves often."""
    if services.weights.may_have_changed:
        await asyncio.to_thread(services.weights.scan_if_changed)
