"""The HTTP server: uvicorn, with a deadline for slow clients and an end that loses nothing."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from utils.serving.engine import Engine

BACKLOG = 2048  # connections that wait to be accepted
WITHOUT_LINGERING = struct.pack("ii", 1, 0)
SECONDS_TO_FETCH = 3  # that the images of jobs which ended last can still be fetched
LAST_ANSWERS = 5  # seconds that answers have to get out when the server ends
LARGEST_HEAD = 2**16  # bytes of a request's address and headers
MOST_CONNECTIONS = 4000
OTHER_FILES = 100  # that the server has open beside its connections
FEWEST_CONNECTIONS = 50
SECONDS_BETWEEN_WARNINGS = 60

logger = logging.getLogger("serve")


class DeadlineProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which waits for clients without end, with deadlines: who has not sent all
    of a request after so many seconds, or does not take anything of its answer for so long, loses
    the connection. An answer, such as a stream of events, may take as long as it likes.
    """

    seconds: float
    most_connections: int
    last_warning = 0.0  # of all connections
    _head_bytes = 0  # of a request whose headers are not complete
    _is_in_head = True
    _deadline: asyncio.TimerHandle | None = None  # for a request
    _reading_deadline: asyncio.TimerHandle | None = None  # for the client to read

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()
        if len(self.connections) > self.most_connections:
            self._warn_of_connections()
            self._cut_off()

    def data_received(self, data: bytes) -> None:
        """A head without end, which the parser would keep in memory, is cut off."""
        self._arm()
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head:
            self._head_bytes = 0
        elif self._head_bytes > LARGEST_HEAD:
            self._cut_off()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0  # what came before it in the same read was of another request
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """More is to be sent than the client has read."""
        super().pause_writing()
        self._reading_deadline = self.loop.call_later(self.seconds, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_reading_deadline()
        self.pipeline.clear()  # requests that nobody waits for any more
        super().connection_lost(exc)

    def _warn_of_connections(self) -> None:
        now = time.monotonic()
        if now - DeadlineProtocol.last_warning > SECONDS_BETWEEN_WARNINGS:
            DeadlineProtocol.last_warning = now
            logger.warning("more than %d connections: new ones are refused", self.most_connections)

    def _arm(self) -> None:
        """The first byte starts the clock; later ones do not set it back."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._expire)

    def _expire(self) -> None:
        """Whose request is complete may wait for the answer, whatever has come behind it."""
        self._deadline = None
        cycle = self.cycle
        is_waiting = cycle and not cycle.more_body and not cycle.response_complete
        if is_waiting:
            self._arm()
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        """End the connection, and do not go on sending what nobody reads."""
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, WITHOUT_LINGERING)
        self.transport.abort()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_reading_deadline(self) -> None:
        if self._reading_deadline is not None:
            self._reading_deadline.cancel()
            self._reading_deadline = None


def deadline_protocol(limit: float) -> type[asyncio.Protocol]:
    """The protocol with deadlines of so many seconds."""

    class Protocol(DeadlineProtocol):
        seconds = limit
        most_connections = connections_at_most()

    return Protocol


def connections_at_most() -> int:
    """As many as the system lets this process have files open, and some less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MOST_CONNECTIONS + OTHER_FILES:
        wanted = MOST_CONNECTIONS + OTHER_FILES
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, soft - OTHER_FILES))


class GracefulServer(uvicorn.Server):
    """On the first signal it takes no more jobs and is not ready, but answers until those under way
    have ended, `grace` seconds at most; on a second one it ends at once.
    """

    def __init__(
        self, config: uvicorn.Config, engine: Engine, grace: float, on_exit: Callable[[], None]
    ):
        super().__init__(config)
        self._on_exit = on_exit
        self._engine = engine
        self._grace = grace
        self._is_ending = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM."""
        if self._is_ending:
            self.should_exit = True
            self.force_exit = True
            return
        self._is_ending = True
        self._on_exit()
        name = signal.Signals(sig).name
        logger.warning("%s: ending as soon as the jobs under way have", name)
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        has_jobs = bool(self._engine.jobs.under_way())
        self._engine.drain(self._grace)
        if has_jobs:
            time.sleep(SECONDS_TO_FETCH)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections. Raises OSError where the address cannot be used."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def make_server(
    app: FastAPI,
    engine: Engine,
    client_timeout: float,
    grace: float,
    on_exit: Callable[[], None] = lambda: None,  # called at the first signal
) -> GracefulServer:
    """uvicorn as it is used here; `run(sockets=[...])` serves until a signal has come and the jobs
    under way have ended.
    """
    config = uvicorn.Config(
        app,
        http=deadline_protocol(client_timeout),
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_ANSWERS,
    )
    return GracefulServer(config, engine, grace, on_exit)
