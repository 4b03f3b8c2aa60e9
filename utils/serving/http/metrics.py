"""Numbers for Prometheus: requests as they are answered, and what the engine counts."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.serving.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
IS_FORWARDED = "is_forwarded"  # in the scope of a request that another server answers
OTHER = "other"  # stands for all paths that there is no route for: clients make them up


class Metrics:
    """The registry of one server."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests",
            "Answered requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "http_request_seconds",
            "Time until a request was answered.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(engine))


class CountRequests:
    """Middleware: every request is counted, also those that are refused."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            if IS_FORWARDED not in scope:  # else the server that answers counts it
                route = getattr(scope.get("route"), "path", OTHER)
                method = scope["method"] if route != OTHER else OTHER
                self._metrics.requests.labels(method, route, status).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - start)


class _EngineCollector(Collector):
    """Reads the engine's own counts when it is asked."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        counts = self._engine.statistics
        ended = CounterMetricFamily("jobs_ended", "Jobs that have ended.", labels=["status"])
        for status, count in counts.ended.items():
            ended.add_metric([status], count)
        yield ended
        simple = {
            "jobs_submitted": ("Jobs that were taken.", counts.submitted),
            "jobs_refused": ("Jobs that were not taken.", counts.refused),
            "images_made": ("Images.", counts.images),
            "network_calls": ("Network calls.", counts.network_calls),
            "network_rows": ("Rows of network calls.", counts.rows),
            "network_seconds": ("Time in steps.", counts.step_seconds),
            "network_call_failures": ("Network calls that failed.", counts.failed_calls),
            "out_of_memory": ("Calls that ran out of memory.", counts.out_of_memory),
        }
        for name, (text, value) in simple.items():
            yield CounterMetricFamily(name, text, value)
        under_way = self._engine.jobs.under_way()
        queued = sum(job.status == "queued" for job in under_way)
        yield GaugeMetricFamily("jobs_under_way", "Jobs that have not ended.", len(under_way))
        yield GaugeMetricFamily("jobs_queued", "Jobs that have not begun.", queued)
