"""Test data: small sets of real images, made from the demo set."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import DEMO, ROOT

torch.set_num_threads(
    1
)  # tiny networks; and what the tests start inherits it, so processes do not crowd each other
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests and what they start never write into the user's cache of decoded images."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of the demo set, 5 + 4 + 4 images of 28x28: a size that no batch divides."""
    for name, count in (("bag", 5), ("boot", 4), ("trouser", 4)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for file in sorted((DEMO / name).iterdir())[:count]:
            shutil.copy(file, tmp_path / "images" / name / file.name)
    return tmp_path / "images"


@pytest.fixture
def script(tmp_path: Path):
    """script("train", "--epochs", 1, ...) runs tools/train.py as a user would; results go below
    tmp_path.
    """

    def run(
        name: str, *args: object, status: int = 0, timeout: float = 120
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, args)]
        if name in ("train", "generate"):
            command += ["--result_path", str(tmp_path / "results"), "--use_gpu", "-1"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        if status == 2:
            assert "Traceback" not in done.stderr
        return done

    return run
