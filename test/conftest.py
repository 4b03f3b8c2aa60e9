"""Test data: small sets of real images, made from the demo set."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import ROOT, copy_some

torch.set_num_threads(
    1
)  # tiny networks; and what the tests start inherits it, so processes do not crowd each other
os.environ["OMP_NUM_THREADS"] = "1"


# Tests that import what requirements-serve-test.txt installs. Without it they are not collected.
OF_THE_SERVER = ("utils/serving/http", "serving_page", "deploy")
LIBRARIES = ("fastapi", "httpx", "openai", "yaml", "kubernetes_validate", "kubeflow_trainer_api")
HAS_SERVER = all(find_spec(name) is not None for name in LIBRARIES)
collect_ignore = [] if HAS_SERVER else list(OF_THE_SERVER)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the server have the marker `serve`."""
    folders = [ROOT / "test" / folder for folder in OF_THE_SERVER]
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker("serve")


def pytest_report_header() -> str:
    if HAS_SERVER:
        return "the server's tests are there: -m serve"
    return "the server's tests are left out: pip install -r requirements-serve-test.txt"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests and what they start never write into the user's cache of decoded images."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of the demo set, 5 + 4 + 4 images of 28x28: a size that no batch divides."""
    return copy_some(tmp_path / "images")


class ScriptServer:
    """Runs scripts in forks of one warm process: see script_server.py."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "test" / "script_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, command: list[str], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        outputs = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        request = {"script": command[0], "args": command[1:], "folder": str(folder)}
        self.process.stdin.write(json.dumps({**request, **outputs, "timeout": timeout}) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        texts = [Path(file).read_text(errors="backslashreplace") for file in outputs.values()]
        return subprocess.CompletedProcess(command, status, *texts)

    def close(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="session")
def script_server(tmp_path_factory):
    server = ScriptServer(tmp_path_factory.mktemp("script_server"))
    yield server
    server.close()


@pytest.fixture
def script(tmp_path: Path, script_server: ScriptServer):
    """script("train", "--epochs", 1, ...) runs tools/train.py as a user would; results go below
    tmp_path.
    """

    def run(name: str, *args: object, status: int = 0, timeout: float = 120):
        command = [str(ROOT / "tools" / f"{name}.py"), *map(str, args)]
        if name.startswith("train") or name in ("generate", "evaluate"):
            command += ["--result_path", str(tmp_path / "results"), "--use_gpu", "-1"]
        done = script_server.run(command, tmp_path, timeout)
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        if status == 2:
            assert "Traceback" not in done.stderr
        return done

    return run
