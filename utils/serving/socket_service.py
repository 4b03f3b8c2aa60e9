"""The article's socket service: UTF-8 JSON ended by -iccv-over, answered by JSON without an end.

A connection is closed when all that came over it is answered. Its clients are of a simple kind:
some send two requests at once, some never read what they asked for.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator

from pydantic import ValidationError

from utils.serving.article import (
    URL,
    ArticleQuestion,
    article_request,
    as_text,
    encoded,
    image_list,
)
from utils.serving.http.security import is_one_of, owner_of
from utils.serving.http.watching import Watch, check_success
from utils.serving.jobs import Client
from utils.serving.refusal import Refusal, invalid
from utils.serving.services import Services

TERMINATOR = b"-iccv-over"
FAILURE = b"500"  # whatever went wrong
CHUNK = 65_536  # bytes
MOST_CONNECTIONS = 256
NEXT_FRAME = 0.1  # seconds that another request may be behind the one before it
FAREWELL = 1.0  # seconds for a client to read why it is cut off
QUIET_SECONDS = 1.0  # after which a job is looked at even if nobody has told of it
LAST_ANSWERS = 2.0  # seconds that answers have to get out when the server ends

logger = logging.getLogger("serve")


class SocketService:
    """Accepts connections at a listening socket, in the event loop of the HTTP server."""

    def __init__(self, services: Services, listener: socket.socket):
        self._services = services
        self._listener = listener
        self._tokens = [token.encode() for token in services.tokens]
        self._connections: set[asyncio.Task] = set()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve within this context; at its end, answers that are being sent get out."""
        server = await asyncio.start_server(self._accepted, sock=self._listener)
        try:
            yield
        finally:
            server.close()
            if self._connections:
                await asyncio.wait(self._connections, timeout=LAST_ANSWERS)
            for task in tuple(self._connections):
                task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # so that drained means sent
        try:
            if len(self._connections) > MOST_CONNECTIONS:
                await self._send(writer, FAILURE)
                return
            await self._serve(Frames(reader, self._services.limits.max_body), writer)
        except (OSError, asyncio.TimeoutError):
            pass  # the client has gone, or does not read
        except asyncio.CancelledError:
            pass  # the server ends; asyncio would report a task of its own that is cancelled
        except Exception:
            logger.exception("a connection of the socket service failed")
        finally:
            self._connections.discard(task)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # the client does not read
            else:
                writer.close()

    async def _serve(self, frames: "Frames", writer: asyncio.StreamWriter) -> None:
        """Answer each request in its order."""
        timeout = self._services.limits.client_timeout
        address = str((writer.get_extra_info("peername") or ("",))[0])
        while True:
            try:
                frame = await asyncio.wait_for(frames.next(), timeout)
            except (BrokenFrame, asyncio.TimeoutError):
                await self._send(writer, FAILURE)
                await _say_farewell(frames, writer)
                return
            if frame is None:
                return
            await self._send(writer, await self._answer(frame, address))
            if not await frames.has_more():
                return

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send all of it. Raises asyncio.TimeoutError where the client reads nothing any more."""
        writer.write(data)
        left = writer.transport.get_write_buffer_size()
        while True:
            try:
                await asyncio.wait_for(writer.drain(), self._services.limits.client_timeout)
                return
            except asyncio.TimeoutError:
                before, left = left, writer.transport.get_write_buffer_size()
                if left >= before:
                    raise

    async def _answer(self, frame: bytes, address: str) -> bytes:
        try:
            return await self._images(frame, address)
        except Refusal as refusal:
            logger.info("the socket service refused a request: %s", refusal)
        except (ValueError, ValidationError, RecursionError):
            logger.info("the socket service was sent what is no request")
        except OSError as error:
            logger.error("the socket service failed at a request: %s", error)
        return FAILURE

    async def _images(self, frame: bytes, address: str) -> bytes:
        """The answer to a request. Raises Refusal; ValueError for what is none."""
        asked = json.loads(frame.decode())
        if not isinstance(asked, dict):
            raise ValueError("a request is an object")
        client = self._client(asked, address)
        question = ArticleQuestion.model_validate(asked)
        if question.type == URL:
            raise invalid("there are no addresses here: type is base64", "type")
        engine = self._services.engine
        generation = await article_request(question, self._services)
        job = engine.submit(generation, client, is_kept=False)
        try:
            with Watch(job) as watch:
                while not job.has_ended:
                    await watch.wait(QUIET_SECONDS)
            check_success(job)
        finally:
            engine.cancel(job)  # which changes nothing where it has ended
        images = [encoded(engine.image(job, place)) for place in range(generation.count)]
        return as_text(image_list(job.id, images, question.type)).encode()

    def _client(self, asked: dict, address: str) -> Client:
        """Who asks. Raises Refusal where a token is needed and the JSON has no right one."""
        if not self._tokens:
            return Client("", address)
        token = asked.get("token")
        if not isinstance(token, str) or not is_one_of(token, self._tokens):
            raise Refusal(401, 'the JSON needs the right "token"')
        return Client(owner_of(token), address)


class BrokenFrame(Exception):
    """A connection ended within a request, or a request has no end."""


class Frames:
    """Cuts what comes over a connection into requests."""

    def __init__(self, reader: asyncio.StreamReader, most: int):
        self.reader = reader
        self._most = most  # bytes of a request
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that hold no terminator

    async def next(self) -> bytes | None:
        """The next request without its terminator; None: there is none. Raises BrokenFrame."""
        while True:
            end = self._buffer.find(TERMINATOR, max(0, self._searched - len(TERMINATOR)))
            if end >= 0:
                frame = bytes(self._buffer[:end])
                del self._buffer[: end + len(TERMINATOR)]
                self._searched = 0
                return frame
            self._searched = len(self._buffer)
            if len(self._buffer) > self._most:
                raise BrokenFrame
            data = await self.reader.read(CHUNK)
            if not data:
                if self._buffer.strip():
                    raise BrokenFrame
                return None
            self._buffer += data

    async def has_more(self) -> bool:
        """Whether another request, or a part of one, has come already."""
        if not self._buffer.strip():
            with contextlib.suppress(asyncio.TimeoutError):
                self._buffer += await asyncio.wait_for(self.reader.read(CHUNK), NEXT_FRAME)
        return bool(self._buffer.strip())


async def _say_farewell(frames: Frames, writer: asyncio.StreamWriter) -> None:
    """Let a client read its answer: where a connection is closed with bytes that nobody has read,
    the answer is lost.
    """

    async def read_to_the_end() -> None:
        while await frames.reader.read(CHUNK):
            pass

    if writer.can_write_eof():
        writer.write_eof()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read_to_the_end(), FAREWELL)
