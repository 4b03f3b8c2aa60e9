#!/usr/bin/env python3
"""Measure the server of tools/serve.py: what sharing network calls costs, and what it is worth.

    python tools/benchmark_server.py throughput     # images per second, beside generate.py at the same batch
    python tools/benchmark_server.py sharing        # network calls of 8 equal jobs, beside those of one
    python tools/benchmark_server.py fairness       # a job of 10 steps behind eight jobs of 1,000 steps
    python tools/benchmark_server.py requests       # 500 requests per second with a network that does nothing; --rate 0: as many as it can
    python tools/benchmark_server.py health         # how fast /healthz answers while all cores compute

Each prints one line per figure. The last two need `pip install -r requirements-serve.txt`.
"""

import asyncio
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

WHAT = opt.Choice(("throughput", "sharing", "fairness", "requests", "health"))

# fmt: off
OPTIONS: opt.Table = {
    "options": [
        Option("what",              None,             WHAT,         "what to measure"),
        shared("--weight_path",     "weight/demo.pt"),
        Option("--num_images",      16,               opt.positive, "throughput: images of each round"),
        Option("--sample_steps",    20,               opt.positive, "throughput, sharing: sampling steps"),
        Option("--rounds",          5,                opt.positive, "throughput: timed rounds of each side, by turns; fairness: of the short job alone"),
        Option("--connections",     64,               opt.positive, "requests: clients at a time"),
        Option("--rate",            500.0,            opt.not_negative, "requests: asked for per second; 0: each client asks again at once"),
        Option("--seconds",         10.0,             opt.seconds,  "requests, health: how long"),
        shared("--amp --fp16",      False),
        shared("--use_gpu",         0),
    ],
}
# fmt: on

LONG_JOBS = 8
LONG_STEPS = 1000
SHORT_STEPS = 10
IMAGES_PER_JOB = 8
IMAGES_OF_PROBED_JOB = 64
MOST_JOBS = 256
SHARING_JOBS = 8
STUB_STEPS = 2
WARM_UP = 2.0  # seconds in which clients ask without being measured
PROBE_INTERVAL = 0.01  # seconds from a question to /healthz to the next
LONGEST_WAIT = 3600.0  # seconds


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if not args.weight_path.is_file():
        raise opt.UserError(f"--weight_path {args.weight_path} is no file")
    measure = {
        "throughput": measure_throughput,
        "sharing": measure_sharing,
        "fairness": measure_fairness,
        "requests": measure_requests,
        "health": measure_health,
    }
    measure[args.what](args)


# --- An engine and its jobs ---


class Bench:
    """The engine with one weight, loaded and measured."""

    def __init__(self, args, load: Callable | None = None):
        from utils.devices import choose_device, choose_precision
        from utils.ranks import Ranks
        from utils.serving.engine import Engine
        from utils.serving.limits import Limits
        from utils.serving.weights import WeightStore, load_diffusion

        self.precision, _ = choose_precision(args.amp, choose_device(args.use_gpu, Ranks()))
        jobs = max(MOST_JOBS, args.num_images)
        self.limits = Limits(
            max_queue=jobs,
            max_client_jobs=jobs,
            max_images=max(IMAGES_OF_PROBED_JOB, args.num_images),
            max_steps=max(LONG_STEPS, args.sample_steps),
            deadline=LONGEST_WAIT,
        )
        self.weights = WeightStore([args.weight_path.parent])
        self.name = args.weight_path.stem
        self.engine = Engine(self.precision, self.limits, load=load or load_diffusion)
        self.engine.start()

    def submit(self, **asked):
        """A job whose images are not guided: a row each. Raises UserError where it is refused."""
        from utils.serving.jobs import Client
        from utils.serving.refusal import Refusal
        from utils.serving.requests import Asked, resolve

        asked = {"weight": self.name, "sample": "ddim", "cfg_scale": 1.0, "seed": 0, **asked}
        try:
            request = resolve(Asked(**asked), self.weights, self.limits)
            return self.engine.submit(request, Client(""))
        except Refusal as refusal:
            raise opt.UserError(f"the server refuses a job: {refusal}") from None

    def finish(self, jobs) -> None:
        while not all(job.has_ended for job in jobs):
            time.sleep(0.001)
        failed = [job.error for job in jobs if job.error is not None]
        if failed:
            raise opt.UserError(f"a job failed: {failed[0]}")

    def wait_until_generating(self, jobs) -> None:
        """Raises UserError where one of them has ended before all have begun."""
        while not all(job.status == "generating" for job in jobs):
            if any(job.has_ended for job in jobs):
                self.finish(jobs)
                raise opt.UserError("this machine is too fast: a long job ended before the others")
            time.sleep(0.01)

    def warm_up(self) -> None:
        self.finish([self.submit(sample_steps=2)])


def measure_throughput(args) -> None:
    from utils.generation import ImageGenerator, Sampling
    from utils.runs.checkpoint import Checkpoint

    bench = Bench(args)
    bench.warm_up()
    checkpoint = Checkpoint.read(args.weight_path)
    sampling = Sampling("ddim", args.sample_steps)
    generator = ImageGenerator.from_checkpoint(checkpoint, sampling, bench.precision)
    seeds = list(range(args.num_images))
    labels = None
    if checkpoint.class_names:
        labels = [seed % len(checkpoint.class_names) for seed in seeds]

    def generate() -> None:
        generator.images(seeds, labels)

    def serve_one_job() -> None:
        job = bench.submit(num_images=args.num_images, sample_steps=args.sample_steps)
        bench.finish([job])

    def serve_many_jobs() -> None:
        jobs = [bench.submit(seed=seed, sample_steps=args.sample_steps) for seed in seeds]
        bench.finish(jobs)

    sides = {
        "generate.py's loop": generate,
        "server, one job": serve_one_job,
        "server, a job for each image": serve_many_jobs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(args.rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if round_number > 0:
                seconds[name].append(time.perf_counter() - start)
    first = statistics.median(seconds["generate.py's loop"])
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = args.num_images / median
        opt.say(f"{name:30s} {rate:8.2f} images/s   {first / median:5.2f} of generate.py's")
    bench.engine.stop()


def measure_sharing(args) -> None:
    bench = Bench(args)
    bench.warm_up()
    counts = bench.engine.statistics
    before = counts.network_calls
    jobs = [bench.submit(seed=seed, sample_steps=args.sample_steps) for seed in range(SHARING_JOBS)]
    bench.finish(jobs)
    calls = counts.network_calls - before
    opt.say(
        f"{SHARING_JOBS} equal jobs of {args.sample_steps} steps: {calls} network calls, "
        f"{calls / args.sample_steps:.2f} x the steps of one"
    )
    bench.engine.stop()


def measure_fairness(args) -> None:
    bench = Bench(args)
    bench.warm_up()

    def seconds_of_short_job() -> float:
        start = time.perf_counter()
        bench.finish([bench.submit(num_images=IMAGES_PER_JOB, sample_steps=SHORT_STEPS)])
        return time.perf_counter() - start

    seconds_of_short_job()  # the first one finds out how fast it is
    alone = statistics.median(seconds_of_short_job() for _ in range(args.rounds))
    long_jobs = [
        bench.submit(
            num_images=IMAGES_PER_JOB, sample="ddpm", sample_steps=LONG_STEPS, seed=100 * number
        )
        for number in range(LONG_JOBS)
    ]
    bench.wait_until_generating(long_jobs)
    behind = seconds_of_short_job()
    share = alone * (LONG_JOBS + 1)
    for job in long_jobs:
        bench.engine.cancel(job)
    opt.say(
        f"a job of {SHORT_STEPS} steps: {alone:.2f} s alone, {behind:.2f} s behind {LONG_JOBS} "
        f"jobs of {LONG_STEPS} steps: {behind / share:.2f} x its share of 1/{LONG_JOBS + 1}"
    )
    bench.engine.stop()


# --- Over HTTP ---


def measure_requests(args) -> None:
    """Each client asks for an image, waits for it, and asks again when its time has come."""
    server = StubServer(args, load=stub_diffusion)
    body = {"prompt": "", "model": server.bench.name, "num_inference_steps": STUB_STEPS}
    pause = args.connections / args.rate if args.rate else 0.0
    times, statuses = server.from_outside(ask_by_many, args.connections, args.seconds, body, pause)
    report("requests", times, args.seconds, statuses)
    server.stop()


def measure_health(args) -> None:
    server = StubServer(args)
    jobs = [
        server.bench.submit(num_images=IMAGES_OF_PROBED_JOB, sample="ddpm", sample_steps=LONG_STEPS)
        for _ in range(2)
    ]
    server.bench.wait_until_generating(jobs)
    times, statuses = server.from_outside(probe, args.seconds)
    if all(job.has_ended for job in jobs):
        raise opt.UserError("this machine is too fast: its work ended before --seconds were over")
    report("/healthz at full compute", times, args.seconds, statuses)
    for job in jobs:
        server.bench.engine.cancel(job)
    server.stop()


def report(name: str, times: list[float], seconds: float, statuses: dict[int, int]) -> None:
    if not times:
        raise opt.UserError(f"nothing was answered within --seconds {seconds:g}: take more of them")
    ordered = sorted(times)
    median = 1000 * statistics.median(ordered)
    p99 = 1000 * ordered[int(0.99 * len(ordered))]
    opt.say(
        f"{name}: {len(times) / seconds:.0f} per second, median {median:.1f} ms, "
        f"p99 {p99:.1f} ms; answers by status: {statuses}"
    )


class StubServer:
    """The real HTTP application over a bench's engine, in a thread of this process."""

    def __init__(self, args, load: Callable | None = None):
        import uvicorn

        from utils.serving.http.app import build_app
        from utils.serving.http.server import listen
        from utils.serving.services import Services

        self.bench = Bench(args, load)
        self.bench.warm_up()
        services = Services(self.bench.engine, self.bench.weights, self.bench.limits)
        config = uvicorn.Config(build_app(services), log_config=None, access_log=False)
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def from_outside(self, client: Callable, *arguments):
        """What a client measures, in a process of its own."""
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(client, (self.port, *arguments))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self.bench.engine.stop()


def stub_diffusion(weight, use_ema, precision):
    """A weight whose network does nothing: what is left is the server's own time."""
    import torch

    from model.codecs import PixelCodec
    from utils.serving.weights import LoadedDiffusion

    class Nothing(torch.nn.Module):
        config: dict = {"name": "unet", "in_channels": 1, "channels": 8, "channel_mult": [1]}

        def forward(self, x, t, labels=None):
            return torch.zeros_like(x)

    process = {"noise_steps": weight.noise_steps, "noise_schedule": "linear", "prediction": "eps"}
    return LoadedDiffusion(weight, Nothing(), PixelCodec(), process, 1, len(weight.classes))


# --- The clients: HTTP/1.1 over plain asyncio, so that they cost less than what they measure ---


def ask_by_many(port: int, connections: int, seconds: float, body: dict, every: float):
    return asyncio.run(_ask_by_many(port, connections, seconds, body, every))


async def _ask_by_many(port: int, connections: int, seconds: float, body: dict, every: float):
    times: list[float] = []
    statuses: dict[int, int] = {}
    end = time.perf_counter() + WARM_UP + seconds
    request = http_request("POST", "/v1/images/generations", port, body)
    clients = [
        _ask(port, request, end, seconds, times, statuses, every, every * number / connections)
        for number in range(connections)
    ]
    await asyncio.gather(*clients)
    return times, statuses


def probe(port: int, seconds: float):
    return asyncio.run(_probe(port, seconds))


async def _probe(port: int, seconds: float):
    times: list[float] = []
    statuses: dict[int, int] = {}
    end = time.perf_counter() + WARM_UP + seconds
    request = http_request("GET", "/healthz", port)
    await _ask(port, request, end, seconds, times, statuses, PROBE_INTERVAL, 0.0)
    return times, statuses


async def _ask(
    port: int,
    request: bytes,
    end: float,
    seconds: float,  # before the end, that are measured
    times: list[float],
    statuses: dict[int, int],
    every: float,
    delay: float,
) -> None:
    """One connection: a request every so many seconds, the first one after a delay, until the end.
    Where an answer takes longer, the next request follows at once.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.perf_counter() + delay
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        due = max(due + every, start)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        await reader.readexactly(content_length(head))
        if end - start > seconds:
            continue  # still warming up
        times.append(time.perf_counter() - start)
        statuses[status] = statuses.get(status, 0) + 1
    writer.close()


def http_request(method: str, path: str, port: int, body: dict | None = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(data)}"]
    if body is not None:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + data


def content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":", 1)[1])
    raise opt.UserError("an answer has no Content-Length")


if __name__ == "__main__":
    opt.run_script(main)
