"""The schema that a server gives says just what it does."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import httpx
import pytest
from helpers import ROOT
from http_helpers import Served, ServerProcess, wait_until, write_weights

from model.samplers import SAMPLERS
from utils.serving.http.fields import SamplerName

OPTIONS = ["--max_steps", 20, "--max_images", 4, "--max_side", 64]  # so that jobs are short


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [[], ["--token", "secret"]])
def test_schemathesis_finds_nothing(tmp_path: Path, tokens: list[str]) -> None:
    folder = write_weights(tmp_path / "weights")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--checks", "all"]
    command += ["--max-examples", "15", "--no-color", "--seed", "1"]
    with ServerProcess(folder, *OPTIONS, *tokens) as server:
        if tokens:
            command += ["--header", f"Authorization: Bearer {tokens[1]}"]
        config = ["--config-file", str(ROOT / "schemathesis.toml")]
        command = [command[0], *config, *command[1:], f"{server.url}/openapi.json"]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
        assert server.process.poll() is None


def test_every_sampler_can_be_asked_for(tmp_path: Path) -> None:
    assert get_args(SamplerName) == tuple(SAMPLERS)
    with Served(write_weights(tmp_path / "weights")) as server:
        for name in SAMPLERS:
            ask(server, name)


def ask(server: Served, name: str) -> None:
    question = {"weight": "tiny", "sample": name, "sample_steps": 3, "seed": 1}
    answer = httpx.post(f"{server.url}/v1/jobs", json=question)
    assert answer.status_code == 202, answer.text
    job = f"{server.url}{answer.json()['poll_url']}"
    wait_until(lambda: httpx.get(job).json()["finished"] is not None)
    assert httpx.get(job).json()["status"] == "completed"
