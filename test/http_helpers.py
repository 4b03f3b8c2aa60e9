"""Servers for tests: one in this process and the real script, both over real connections."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from helpers import ROOT
from upscaling_helpers import write_upscaler

from model.codecs import JointCodec
from model.condition import Condition
from model.networks import build_network
from utils.devices import Precision
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import save_checkpoint
from utils.serving.engine import Engine
from utils.serving.http.app import build_app
from utils.serving.http.server import listen, make_server
from utils.serving.limits import Limits
from utils.serving.services import Services
from utils.serving.socket_service import SocketService
from utils.serving.weights import LoadedDiffusion, WeightStore, load_diffusion

CLASSES = ("cat", "dog", "red fox")
SIDE = 8
CPU = Precision(torch.float32, torch.device("cpu"))


def write_weight(
    file: Path,
    classes: tuple[str, ...] = CLASSES,
    mode: str = "RGB",
    condition: Condition | None = None,
    joint: list[int] | None = None,  # labels of masks that it makes with its images
) -> Path:
    """A tiny diffusion that has learned nothing, as a file to be served."""
    torch.manual_seed(0)
    channels = 3 if mode == "RGB" else 1
    more = {}
    if condition is not None:
        more["condition"] = condition.config
    if joint is not None:
        more["codec"] = JointCodec(channels, joint).config
    seen = channels + len(joint or [])
    network = build_network(
        {
            "name": "unet",
            "in_channels": seen + (0 if condition is None else condition.channels),
            "out_channels": seen,
            "channels": 8,
            "channel_mult": [1, 2],
            "head_channels": 8,
            "num_classes": len(classes) or None,
        }
    )
    with torch.no_grad():
        for parameter in network.parameters():  # a new network gives zeros
            parameter += 0.02 * torch.randn_like(parameter)
    config = {
        "network": network.config,
        "data": {"image_size": [SIDE, SIDE], "mode": mode, "class_names": list(classes)},
        "diffusion": {"noise_steps": 100, "noise_schedule": "linear", "prediction": "eps"},
        "sampling": {"sampler": "ddim", "guidance": bool(classes) or condition is not None},
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(Checkpoint(config=config, ema=network.state_dict()).to_dict(), file)
    return file


def write_weights(folder: Path) -> Path:
    """A folder with the diffusions tiny (three classes) and plain (none), and an upscaler."""
    write_weight(folder / "tiny.pt")
    write_weight(folder / "plain.pt", classes=(), mode="L")
    write_upscaler(folder / "twice.pt")
    return folder


class Served:
    """A server in this process, at `url`.

    `slow`: seconds that are added to each network call, so that jobs can be met under way.
    """

    def __init__(self, folder: Path, slow: float = 0.0, grace: float = 5.0, **services: Any):
        self.slow = slow
        limits = services.pop("limits", Limits())
        self.services = Services(
            engine=Engine(CPU, limits, services.get("name", ""), self._load),
            weights=WeightStore([folder]),
            limits=limits,
            **services,
        )
        self.engine = self.services.engine
        self.socket_service = SocketService(self.services, listen("127.0.0.1", 0))
        app = build_app(self.services, socket_service=self.socket_service)
        self._server = make_server(app, self.engine, limits.client_timeout, grace)
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> "Served":
        self.engine.start()
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()
        self.engine.stop()

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def post_job(self, client: httpx.Client, **question: Any) -> str:
        """Its id."""
        answer = client.post("/v1/jobs", json=question)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def _load(self, *args: Any) -> LoadedDiffusion:
        loaded = load_diffusion(*args)
        loaded.network.register_forward_pre_hook(lambda *_: time.sleep(self.slow))
        return loaded


class ServerProcess:
    """tools/serve.py as a user runs it, on a port that is free."""

    def __init__(self, folder: Path, *options: object, grace: float = 5):
        command = [sys.executable, str(ROOT / "tools" / "serve.py"), "--weights", str(folder)]
        command += ["--port", "0", "--use_gpu", "-1", "--training", "False", "--grace", str(grace)]
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.said = ""
        self.port = self._find_port()
        self.url = f"http://127.0.0.1:{self.port}"
        wait_until(self._answers, 30)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=30)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def memory(self) -> int:
        """Bytes of RAM that it has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def _find_port(self) -> int:
        for line in self.process.stdout:
            self.said += line
            found = re.search(r"http://[^ ]*:(\d+)", line)
            if found:
                return int(found[1])
        raise AssertionError(f"{self.said}{self.process.stderr.read()}")

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False


def wait_until(is_so: Any, timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.01)


def connected(port: int) -> socket.socket:
    """A bare connection."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(20)
    return connection
