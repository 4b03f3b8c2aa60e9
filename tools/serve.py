#!/usr/bin/env python3
"""Serve trained networks: a web page, an HTTP API, the images API of OpenAI, and a socket.

    python tools/serve.py                                               # weight/ and results/, on this machine alone: http://127.0.0.1:8000
    python tools/serve.py --weights my_weights --port 8080              # weights from another folder
    python tools/serve.py --host 0.0.0.0 --token SECRET                 # for other machines, which must know the token
    python tools/serve.py --socket 8001                                 # the socket service too

It needs `pip install -r requirements-serve.txt`. Ctrl-C or SIGTERM ends it as soon as the jobs under way have ended, a second one at once.
"""

import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt
from utils.options import Option, shared

# fmt: off
OPTIONS: opt.Table = {
    "what": [
        Option("--weights",         "weight results", opt.path,         "folders whose weights are served, with what lies in the folders in them", several=True),
        Option("--data",            "datasets",       opt.path,         "folder whose folders of images can be trained on from the web page"),
        shared("--result_path",     "results",        "folder that holds the runs which the web page shows and starts"),
        Option("--training",        True,             opt.switch,       "whether the web page can train"),
    ],
    "where": [
        Option("--host",            "127.0.0.1",      opt.text,         "address to listen at; 0.0.0.0: from all machines, which needs --token"),
        Option("--port",            8000,             opt.port,         "port of the web page and of HTTP; 0: any that is free"),
        Option("--socket",          None,             opt.port,         "port of the socket service; not set: none"),
        Option("--token",           None,             opt.text,         "what clients must know, several with commas between them; not set: that in the environment's SERVE_TOKEN, else none"),
        Option("--allowed_hosts",   None,             opt.text,         "names that this server is called by, with commas between them; *: any; not set: this machine's own, with --token any"),
        Option("--name",            None,             opt.replica_name, "name of this replica, which begins the ids of its jobs"),
        Option("--alias",           None,             opt.text,         "other names of weights in the images API: gpt-image-1=demo, several with commas between them"),
    ],
    "limits": [
        Option("--max_queue",       64,               opt.positive,     "jobs that are not finished, at a time; more are answered with 429"),
        Option("--max_client_jobs", 16,               opt.positive,     "unfinished jobs of one client, at most"),
        Option("--max_images",      64,               opt.positive,     "images of a job"),
        Option("--max_steps",       1000,             opt.positive,     "sampling steps"),
        Option("--max_side",        1024,             opt.positive,     "pixels of an image's height and width"),
        Option("--max_body",        8_000_000,        opt.positive,     "bytes of a request; more are answered with 413"),
        Option("--deadline",        600,              opt.seconds,      "seconds within which a job must be finished; else it is answered with 504"),
        Option("--client_timeout",  20,               opt.seconds,      "seconds that a client may take to send a request"),
        Option("--keep_seconds",    3600,             opt.seconds,      "how long the images of a finished job can be fetched"),
        Option("--max_weights",     4,                opt.positive,     "networks in memory"),
        Option("--grace",           60,               opt.seconds,      "seconds that jobs under way have to finish when the server ends"),
    ],
    "machine": [
        shared("--amp --fp16",      False),
        shared("--use_gpu",         0),
    ],
}
# fmt: on

INSTALL = "pip install -r requirements-serve.txt"
TOKEN_VARIABLE = "SERVE_TOKEN"


def build_parser() -> opt.Parser:
    return opt.make_parser(__doc__, OPTIONS)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check_folders(args)
    tokens = tokens_of(args)
    check_reach(args, tokens)
    hosts_of(args, tokens)
    aliases_of(args)
    need_libraries()
    from utils.serving.http.app import build_app
    from utils.serving.http.server import make_server
    from utils.serving.socket_service import SocketService

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    listener = open_port(args.host, args.port, "--port")
    port = listener.getsockname()[1]
    socket_listener = None
    if args.socket is not None:
        socket_listener = open_port(args.host, args.socket, "--socket")
    services = build_services(args, tokens)
    socket_service = None
    if socket_listener is not None:
        socket_service = SocketService(services, socket_listener)
    services.engine.start()
    if services.training is not None:
        services.training.start()
    patience = None
    try:
        say_what_is_served(args, services, port)
        if socket_service is not None:
            opt.say(f"the socket service is at port {socket_service.port}")
        app = build_app(services, socket_service=socket_service)
        server = make_server(
            app, services.engine, args.client_timeout, args.grace, services.end_streams
        )
        with listener:
            server.run(sockets=[listener])
        if server.force_exit:
            patience = 0.5
    finally:
        services.engine.stop(patience)
        if services.training is not None:
            services.training.close()


# --- Checks, before anything is imported that takes long ---


def check_folders(args) -> None:
    for folder in args.weights:
        check_folder(folder, "--weights", "name folders of weights")
    if args.training:
        check_folder(args.data, "--data", "name the folder that holds the folders of images")
    if args.result_path.exists():
        check_folder(args.result_path, "--result_path", "name the folder that holds the runs")


def check_folder(folder: Path, option: str, advice: str) -> None:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise opt.UserError(f"{option} {folder} {found}; {advice}")


def listed(text: str) -> tuple[str, ...]:
    """The parts of a text with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def tokens_of(args) -> tuple[str, ...]:
    """The tokens that clients may have. Raises UserError for an empty --token, and for tokens that
    a header or a cookie cannot carry.
    """
    source = "--token"
    if args.token is None:
        source = TOKEN_VARIABLE
        tokens = listed(os.environ.get(TOKEN_VARIABLE, ""))
    else:
        tokens = listed(args.token)
        if not tokens:
            raise opt.UserError("--token is empty; name what clients must know, or leave it out")
    if not all(token.isascii() and token.isprintable() for token in tokens):
        raise opt.UserError(f"{source}: letters, digits and signs of ASCII alone make a token")
    return tokens


def check_reach(args, tokens: tuple[str, ...]) -> None:
    """Raise UserError where everyone in the network could use the server."""
    if not is_loopback(args.host) and not tokens:
        raise opt.UserError(
            f"--host {args.host} lets other machines in: add --token, which they must know then, "
            f"or set {TOKEN_VARIABLE}"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. Raises UserError for one that is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise opt.UserError(f"--host {host!r} is no address of this machine: {error}") from None
    addresses = [ipaddress.ip_address(entry[4][0].partition("%")[0]) for entry in found]
    return all(address.is_loopback for address in addresses)


def need_libraries() -> None:
    """Raise UserError where the web libraries are missing."""
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise opt.UserError(
            f"tools/serve.py needs the library {error.name}: install it with {INSTALL}"
        ) from None


def open_port(host: str, port: int, option: str):
    """A listening socket. Raises UserError, naming the option, where there can be none."""
    from utils.serving.http.server import listen

    try:
        return listen(host, port)
    except OSError as error:
        raise opt.UserError(
            f"--host {host} {option} {port} cannot be listened at: {error.strerror}"
        ) from None


# --- The parts ---


def build_services(args, tokens: tuple[str, ...] = (), secret: bytes | None = None):
    """What the APIs share: the engine, which is not started yet, weights and limits. `secret`: that
    of the other replicas, whose addresses this one then knows; not given: one of its own.
    """
    from utils.devices import choose_device, choose_precision
    from utils.ranks import Ranks
    from utils.serving.engine import Engine
    from utils.serving.services import Services
    from utils.serving.weights import WeightStore

    precision, remark = choose_precision(args.amp, choose_device(args.use_gpu, Ranks()))
    if remark:
        opt.say(f"warning: {remark}")
    limits = limits_of(args)
    name = args.name or ""
    weights = WeightStore(args.weights)
    shared_secret = {} if secret is None else {"secret": secret}
    return Services(
        engine=Engine(precision, limits, name),
        weights=weights,
        limits=limits,
        name=name,
        tokens=tokens,
        hosts=hosts_of(args, tokens),
        aliases=aliases_of(args),
        training=build_trainings(args) if args.training else None,
        **shared_secret,
    )


def build_trainings(args):
    """What trains over HTTP, by the options of tools/train.py."""
    from tools.option_tables import load_script
    from utils.serving.processes import Trainings
    from utils.serving.training_form import TrainingForm

    script = load_script("train")

    def check(arguments: list[str]) -> None:
        script.check(script.build_parser().parse_args(arguments))

    tools = opt.ROOT / "tools"
    form = TrainingForm(script.OPTIONS, tools / "train.py", check)
    return Trainings(form, args.result_path, args.data, tools / "evaluate.py")


def limits_of(args):
    from utils.serving.limits import Limits

    return Limits(
        max_queue=args.max_queue,
        max_client_jobs=args.max_client_jobs,
        max_images=args.max_images,
        max_steps=args.max_steps,
        max_side=args.max_side,
        max_body=args.max_body,
        deadline=args.deadline,
        client_timeout=args.client_timeout,
        keep_seconds=args.keep_seconds,
        max_weights=args.max_weights,
    )


def hosts_of(args, tokens: tuple[str, ...]) -> tuple[str, ...]:
    """The names that the server may be called by, beside this machine's own. Raises UserError for
    an empty list.
    """
    if args.allowed_hosts is not None:
        hosts = listed(args.allowed_hosts)
        if not hosts:
            raise opt.UserError("--allowed_hosts is empty; name hosts, or leave it out")
        return hosts
    return ("*",) if tokens else (args.host,)


def aliases_of(args) -> dict[str, str]:
    """Name in the images API -> name of a weight. Raises UserError for what is no pair."""
    aliases: dict[str, str] = {}
    if args.alias is None:
        return aliases
    for pair in args.alias.split(","):
        alias, equals, name = pair.partition("=")
        if not equals or not alias.strip() or not name.strip():
            raise opt.UserError(f"--alias {pair!r} is no pair such as gpt-image-1=demo")
        aliases[alias.strip()] = name.strip()
    return aliases


def say_what_is_served(args, services, port: int) -> None:
    weights = services.weights.all()
    names = opt.name_list(weight.name for weight in weights) or "none yet"
    plural = "" if len(weights) == 1 else "s"
    host = f"[{args.host}]" if ":" in args.host else args.host
    opt.say(f"{len(weights)} weight{plural}: {names}")
    opt.say(f"the web page is at http://{host}:{port}; Ctrl-C ends the server")


if __name__ == "__main__":
    opt.run_script(main)
