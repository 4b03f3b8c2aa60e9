"""The web page in Debian's Chromium, served by tools/serve.py as a user starts it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from helpers import ROOT, TINY, write_masks
from http_helpers import write_weight
from page_server import HOSTILE, Server, copy_images, end_trainings

from model.condition import LabelCondition

BROWSERS = ("chromium", "chromium-browser")
# In a container there is neither a sandbox nor much shared memory.
BROWSER_FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
PATIENCE = 30_000  # milliseconds that a step on the page may take, on a machine with other work


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server with the demo weight and one that label maps steer, a folder of real images, and one
    with a hostile class.
    """
    folder = tmp_path_factory.mktemp("page")
    (folder / "weight").mkdir()
    shutil.copy(ROOT / "weight" / "demo.pt", folder / "weight")
    write_weight(folder / "weight" / "outlines.pt", classes=(), condition=LabelCondition([0, 1]))
    copy_images(folder / "data" / "shoes", {"boot": "boot", "sneaker": "sneaker"})
    write_masks(folder / "data" / "shoes", folder / "data" / "shoe_masks")
    copy_images(folder / "data" / "odd", {HOSTILE: "bag", "boot": "boot"})
    served = Server(folder)
    served.start()
    yield served
    served.end()
    end_trainings(served.results)


@pytest.fixture(scope="session")
def finished_run(server: Server) -> str:
    """A run with a long name that was trained on the command line: how its name is in addresses."""
    name = f"long_{'name_' * 20}"
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--run_name", name]
    command += ["--dataset_path", str(server.folder / "data" / "odd"), "--use_gpu", "-1"]
    command += ["--result_path", str(server.results), "--epochs", "3", "--cache", "none"]
    command += ["--eval_interval_epochs", "1", "--val_fraction", "0.2", *TINY]
    subprocess.run(command, check=True, capture_output=True)
    return name


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium. There is nothing to test the page with where it is missing."""
    sync_api = pytest.importorskip(
        "playwright.sync_api",
        reason="the page is tested with playwright: pip install -r requirements-page-test.txt",
    )
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("the page is tested in Chromium: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield started
        started.close()


@dataclass
class Watch:
    """What a page must not do: report errors, or ask another host."""

    host: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of errors that a test provokes

    def follow(self, page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._request)

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != self.host:
            self.strangers.append(request.url)

    def check(self) -> None:
        unexpected = [
            error for error in self.errors if not any(part in error for part in self.expected)
        ]
        assert unexpected == []
        assert self.strangers == []


@pytest.fixture
def watch(server) -> Watch:
    return Watch(urlsplit(server.url).netloc)


@pytest.fixture
def open_page(browser, server, watch):
    """open_page("#train", width=360) -> a page of a fresh browser profile, watched for errors."""
    contexts = []

    def open_one(place: str = "", width: int = 1280, scheme: str = "light", url: str = ""):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        watch.follow(page)
        page.goto(f"{url or server.url}/{place}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    watch.check()
