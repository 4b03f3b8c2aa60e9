"""A container engine where there is none: an image built and run with what root has at hand.

A real base image cannot be fetched by every machine. The one here is Debian's, made by debootstrap,
and gets the libraries of the Python that runs the tests, mounted read-only, so that pip finds
all requirements satisfied. Neither an overlay file system nor user namespaces are needed.
"""

import concurrent.futures
import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy_helpers import Address, Answer
from helpers import ROOT

COMMANDS = ("buildah", "podman", "runc", "debootstrap")
# Which Debian has the Python that the mounted libraries were built for.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
SETUP_SECONDS = 500
CLONE_NEWNET = 0x40000000  # of setns(2)


def why_not_here() -> str:
    """Why images cannot be built and run here; "": they can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "images are built and run as root"
    lacking = [command for command in COMMANDS if shutil.which(command) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if sys.version_info[:2] not in SUITES:
        return "no Debian with this version of Python is known here"
    return ""


class Engine:
    """buildah and podman with a storage of their own in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        self._storage += ["--storage-driver", "vfs"]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        libraries = f"/usr/local/lib/python{version}/dist-packages"
        self._libraries = ["--volume", f"{sysconfig.get_path('purelib')}:{libraries}:ro"]

    def podman(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        command = ["podman", *self._storage, "--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        return run([*command, "--events-backend", "file", *arguments], **settings)

    def make_base(self) -> None:
        """The image localhost/base: Debian with Python, called "python"."""
        root = self.folder / "base"
        suite = SUITES[sys.version_info[:2]]
        run(["debootstrap", "--variant=minbase", "--include=python3", suite, str(root)])
        for file in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            file.unlink()  # pip may install, as in the official images of Python
        (root / "usr" / "bin" / "python").symlink_to("python3")
        archive = self.folder / "base.tar"
        run(["tar", "--directory", str(root), "--create", "--file", str(archive), "."])
        shutil.rmtree(root)
        self.podman("import", str(archive), "base")
        archive.unlink()

    def build(self) -> str:
        """The image localhost/iddm from the project's Dockerfile; what was printed."""
        command = ["buildah", *self._storage, "bud", "--isolation", "chroot", "--format", "docker"]
        command += ["--build-arg", "BASE=localhost/base", *self._libraries]
        return run([*command, "--tag", "iddm", str(ROOT)]).stdout

    def start(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A container, as strictly as compose.yaml runs it, and without a network."""
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=2048:2048"]
        rights = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
        command = ["run", "--name", name, "--network", "none", "--tmpfs", "/tmp"]
        return self.podman(*command, *limits, *rights, *self._libraries, *arguments, check=False)

    def inspect(self, name: str, field: str) -> str:
        return self.podman("inspect", name, "--format", f"{{{{.{field}}}}}").stdout.strip()

    def remove(self) -> None:
        self.podman("rm", "--all", "--force", "--time", "0", check=False)
        shutil.rmtree(self.folder)


def run(command: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SETUP_SECONDS)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


class InsideAddress(Address):
    """An address in the network of a container, which has nothing but its own loopback."""

    def __init__(self, process: int, port: int, headers: dict[str, str]):
        super().__init__(f"http://127.0.0.1:{port}", headers)
        # A thread may be in another network than the rest of its process.
        self._thread = concurrent.futures.ThreadPoolExecutor(
            max_workers=1, initializer=enter_network, initargs=(process,)
        )

    def ask(self, path: str, body: Any = None, headers: dict | None = None) -> Answer:
        return self._thread.submit(super().ask, path, body, headers).result()


def enter_network(process: int) -> None:
    """Put this thread into the network of a process."""
    with open(f"/proc/{process}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
