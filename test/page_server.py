"""A tools/serve.py with folders of its own, for the tests of the web page."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from helpers import DEMO, ROOT

SECONDS_TO_START = 120
HOSTILE = "<img src=x onerror=window.hacked=1>"  # as the name of a class


@dataclass
class Server:
    """The process, and what it serves: `weight`, `data` and `results` in a folder."""

    folder: Path
    arguments: list[str] = field(default_factory=list)
    process: subprocess.Popen | None = None
    url: str = ""
    port: int = 0

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def start(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)
        self.results.mkdir(exist_ok=True)
        log = self.folder / "serve.txt"
        command = [sys.executable, str(ROOT / "tools" / "serve.py")]
        command += ["--weights", str(self.folder / "weight"), str(self.results)]
        command += ["--data", str(self.folder / "data"), "--result_path", str(self.results)]
        command += ["--port", str(self.port), "--use_gpu", "-1", *self.arguments]
        with open(log, "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.url = self._wait_for_address(log)
        self.port = urlsplit(self.url).port or 0

    def _wait_for_address(self, log: Path) -> str:
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            found = re.search(r"http://[\d.]+:\d+", log.read_text())
            if found is not None:
                return found[0]
            assert self.process is not None
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"the server did not start: {log.read_text()}")

    def end(self, signal_number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(signal_number)
        self.process.wait(90)


def copy_images(folder: Path, classes: dict[str, str], count: int = 20) -> None:
    """Real images of the demo set, under these class names."""
    for name, source in classes.items():
        (folder / name).mkdir(parents=True)
        for file in sorted((DEMO / source).iterdir())[:count]:
            shutil.copy(file, folder / name)


def end_trainings(results: Path) -> None:
    """Trainings outlive their server: those that a failed test has left behind are ended."""
    for status in results.glob("*/process.json"):
        numbers = re.findall(r'"pid": (\d+)', status.read_text())
        for number in numbers:
            command = Path(f"/proc/{number}/cmdline")
            if command.exists() and str(results).encode() in command.read_bytes():
                os.kill(int(number), signal.SIGKILL)
