#!/usr/bin/env python3
"""Serve trained networks with several replicas of tools/serve.py, on the GPUs of one or many machines, by Ray Serve.

    python tools/serve_ray.py --replicas 2 --gpus_per_replica 1                     # on this machine: http://127.0.0.1:8000
    python tools/serve_ray.py --replicas 2 --gpus_per_replica 0.5                   # two on one GPU
    python tools/serve_ray.py --replicas 8 --address auto --host 0.0.0.0 --token T  # on the Ray cluster that this machine belongs to
    PYTHONPATH=. serve deploy deploy/ray.yaml                                       # the same from a file

It needs `pip install -r requirements-ray.txt`. The replicas do not train. The options that are not
listed under "replicas" are those of serve.py.
"""

from __future__ import annotations

import secrets
import signal
import sys
import threading
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import serve as one_server
from utils import options as opt
from utils.options import Option

if TYPE_CHECKING:
    from ray.serve import Application

    from utils.serving.services import Services

# fmt: off
OWN: opt.Table = {
    "replicas": [
        Option("--replicas",         2,    opt.positive,     "number of servers"),
        Option("--gpus_per_replica", 0,    opt.not_negative, "GPUs of each; 0.5: two share one; 0: the CPU"),
        Option("--cpus_per_replica", 1,    opt.not_negative, "processor cores that Ray counts for each"),
        Option("--address",          None, opt.text,         "Ray cluster to serve on, auto: the one of this machine; not set: one for this purpose, until Ctrl-C"),
    ],
}
# fmt: on

NOT_HERE = ("data", "result_path", "training", "socket", "name", "client_timeout")
OPTIONS = opt.derived_table(one_server.OPTIONS, OWN, {}, without=NOT_HERE)
INSTALL = "pip install -r requirements-ray.txt"
APPLICATION = "iddm"
LOOPBACK = "127.0.0.1"
SECRET_BYTES = 32
TIME_TO_END = 10  # seconds beyond --grace, after which Ray ends a replica


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    one_server.check_folders(args)
    check_access(args)
    need_libraries()
    import ray
    from ray import serve

    is_own_cluster = args.address is None
    ray.init(
        address="local" if is_own_cluster else args.address,
        # Nothing of it is to be reached from other machines.
        _node_ip_address=LOOPBACK if is_own_cluster else None,
        include_dashboard=False if is_own_cluster else None,
        runtime_env={"env_vars": {"PYTHONPATH": str(opt.ROOT)}},
    )
    where = {"host": args.host, "port": args.port}
    serve.start(proxy_location="EveryNode", http_options=where)
    serve.run(application_of(args), name=APPLICATION)
    opt.say(f"{args.replicas} replicas at http://{args.host}:{args.port}")
    if is_own_cluster:
        opt.say("Ctrl-C ends them")
        wait_for_signal()
        serve.shutdown()
    ray.shutdown()


def check_access(args: Namespace) -> None:
    """Raise UserError, before any work, where everyone in the network could use the servers."""
    tokens = one_server.tokens_of(args)
    one_server.check_reach(args, tokens)
    one_server.hosts_of(args, tokens)
    one_server.aliases_of(args)


def parsed(argv: list[str] | None) -> Namespace:
    """The options of this script, and those of serve.py that it has not got, for no training."""
    of_one_server = one_server.build_parser().parse_args(["--training", "False"])
    given = build_parser().parse_args(argv)
    return Namespace(**{**vars(of_one_server), **vars(given)})


def wait_for_signal() -> None:
    """Until Ctrl-C or SIGTERM."""
    has_come = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: has_come.set())
    has_come.wait()


def need_libraries() -> None:
    """Raise UserError where a library is missing."""
    one_server.need_libraries()
    try:
        import aiohttp  # noqa: F401
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise opt.UserError(
            f"tools/serve_ray.py needs the library {error.name}: install it with {INSTALL}"
        ) from None


def application(settings: dict[str, Any]) -> Application:
    """What `serve deploy` builds from a file: `settings` are options without their dashes. Raises
    UserError as `check_access` does, and without a host: the file's http_options say where Ray
    listens, which is not known here. (The folders are those of the replicas' machines.)
    """
    if "host" not in settings:
        raise opt.UserError(
            "the args of the application lack host: it must be that of http_options, so that a "
            "server which other machines reach is not open to everybody"
        )
    given = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        given += [f"--{name}", *map(str, values)]
    args = parsed(given)
    check_access(args)
    return application_of(args)


def application_of(args: Namespace) -> Application:
    from utils.serving.ray_replicas import Replica

    tokens, secret = one_server.tokens_of(args), secrets.token_bytes(SECRET_BYTES)
    make_services = partial(services_of_replica, args, tokens, secret)
    is_on_one_machine = one_server.is_loopback(args.host)
    return Replica.options(
        num_replicas=args.replicas,
        ray_actor_options={"num_gpus": args.gpus_per_replica, "num_cpus": args.cpus_per_replica},
        graceful_shutdown_timeout_s=args.grace + TIME_TO_END,
    ).bind(make_services, is_on_one_machine, args.grace)


def services_of_replica(
    args: Namespace, tokens: tuple[str, ...], secret: bytes, name: str
) -> Services:
    """In the replica's process: the parts of a server of this name. All have one secret, so that
    each lets in who has the address of an image of another one.
    """
    return one_server.build_services(Namespace(**{**vars(args), "name": name}), tokens, secret)


if __name__ == "__main__":
    opt.run_script(main)
