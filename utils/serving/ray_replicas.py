"""Servers as replicas of Ray Serve. Ray starts them, watches them and starts new ones for the dead.

A job is known to its replica alone, whose name begins its id. Ray sends a request to any replica;
one that has not got the job asks an actor where it is, and hands the request on.
"""

import asyncio
from collections.abc import Callable

import ray
from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from starlette.middleware import Middleware

from utils.serving.http.app import build_app
from utils.serving.http.forwarding import ForwardJobs
from utils.serving.http.server import listen, make_server
from utils.serving.services import Services

NAMESPACE = "iddm"
OWNERS = "job-owners"
LOOPBACK = "127.0.0.1"


@ray.remote(num_cpus=0)
class JobOwners:
    """Knows where each replica answers, those that are gone included. It outlives them all."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}

    def enter(self, name: str, address: str) -> None:
        self._addresses[name] = address

    def find(self, name: str) -> str | None:
        """The address of the replica; None: there was never one of that name."""
        return self._addresses.get(name)


def job_owners() -> ActorHandle:
    """The one actor of the cluster."""
    return JobOwners.options(  # type: ignore[attr-defined]
        name=OWNERS, namespace=NAMESPACE, lifetime="detached", get_if_exists=True
    ).remote()


@serve.deployment(name="server", max_ongoing_requests=1000)
@serve.ingress()
class Replica:
    """The parts of a server and its application, the same as in tools/serve.py.

    make_services gets the replica's name. is_on_one_machine: the other replicas are on this one.
    `grace`: seconds that jobs under way have to finish when the replica ends.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, make_services: Callable[[str], Services], is_on_one_machine: bool, grace: float
    ):
        name = serve.get_replica_context().replica_id.unique_id
        owners = job_owners()
        self._grace = grace
        self._services = make_services(name)
        self._app = build_app(self._services)
        # Innermost: a request of somebody else's job is guarded and bounded as any other.
        forward = Middleware(ForwardJobs, name=name, find=owners.find.remote)
        self._app.user_middleware.append(forward)
        self._services.engine.start()
        # For the other replicas, which cannot choose one when they ask by way of Ray Serve.
        host = LOOPBACK if is_on_one_machine else ray.util.get_node_ip_address()
        listener = listen(host, 0)
        limits = self._services.limits
        self._server = make_server(self._app, self._services.engine, limits.client_timeout, grace)
        self._answering = asyncio.create_task(self._server.serve(sockets=[listener]))
        await owners.enter.remote(name, f"http://{host}:{listener.getsockname()[1]}")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor."""
        return self._app

    async def __del__(self) -> None:
        """Called by Ray Serve when the replica ends in good order."""
        await asyncio.to_thread(self._services.engine.drain, self._grace)
        self._server.should_exit = True
        await self._answering
        await asyncio.to_thread(self._services.engine.stop)
