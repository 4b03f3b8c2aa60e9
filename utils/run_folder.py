"""results/<run_name>/: everything that a run writes, and the lock that keeps a second writer out."""

import contextlib
import csv
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.checkpoint import LAST, PREVIOUS, SLIM, read_checkpoint, save_checkpoint, snapshot
from utils.errors import UserError
from utils.images import save_image

METRICS, LOG, CONFIG = "metrics.csv", "log.txt", "config.json"


class RunFolder:
    """The folder of one run, opened for writing by one process. UserError where it cannot be
    written, is in use by another process, or holds an earlier run while `resume` is False.
    """

    def __init__(self, path: Path, resume: bool):
        self.path = path
        if resume and not path.is_dir():
            raise UserError(f"--resume: there is no run {path}; leave --resume out to start it")
        try:
            (path / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")
        except OSError as error:
            raise UserError(
                f"the results folder {path} cannot be written: {error.strerror}"
            ) from None
        try:
            # Not flock: workers that outlive a killed run for some seconds would go on holding it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"the run {path} is being written by another process; choose another --run_name"
            ) from None
        if not resume and any((path / name).exists() for name in (LAST, PREVIOUS, METRICS)):
            raise UserError(
                f"{path} holds an earlier run: go on with --resume, or choose another --run_name"
            )
        self._tensorboard: SummaryWriter | None = None
        self._saving: threading.Thread | None = None
        self._save_error: Exception | None = None
        self._failed: set[str] = set()
        self._last_is_whole = True

    def log(self, text: str) -> None:
        """To the screen, beside the progress bar, and to log.txt."""
        text = text.encode("utf-8", "backslashreplace").decode()  # file names need not be UTF-8
        tqdm.write(text)
        with self._may_fail(LOG), open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextlib.contextmanager
    def _may_fail(self, name: str) -> Iterator[None]:
        """A full or failing disk does not end the run: it is said once, and the file is tried again
        the next time.
        """
        try:
            yield
            self._failed.discard(name)
        except (OSError, UserError) as error:
            if name not in self._failed:
                self._failed.add(name)
                tqdm.write(
                    f"warning: {self.path / name} could not be written: {error}; training goes on"
                )

    def start(self, config: dict, step: int, source: Path | None = None) -> None:
        """Write config.json, and cut the metrics back to `step`, so that a resumed run has no step
        twice.

        Where it resumed from ckpt_prev.pt (`source`), the last checkpoint is damaged and must not
        take its place.
        """
        self._last_is_whole = source is None or source.name != PREVIOUS
        for half in self.path.glob("*.tmp"):  # of a save that a kill cut short
            half.unlink()
        (self.path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        metrics = self.path / METRICS
        if metrics.exists():
            header, *rows = metrics.read_text(encoding="utf-8", errors="replace").splitlines(
                keepends=True
            ) or [""]
            header, rows = (header, rows) if header.endswith("\n") else ("", [])
            whole = [row for row in rows if row.endswith("\n") and row.split(",")[0].isdigit()]
            kept = [row for row in whole if int(row.split(",")[0]) <= step]
            temporary = metrics.with_suffix(".tmp")
            temporary.write_text(header + "".join(kept), encoding="utf-8")
            os.replace(temporary, metrics)
        self._purge_step: int | None = step + 1

    def _board(self) -> SummaryWriter:
        """TensorBoard's writer; a new one after the last has failed."""
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path), purge_step=self._purge_step)
            self._purge_step = None
        return self._tensorboard

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Append one row per step to metrics.csv and the same numbers to TensorBoard; NaN is left
        empty.
        """
        file = self.path / METRICS
        size = file.stat().st_size if file.exists() else 0
        with self._may_fail(METRICS):
            try:
                with open(file, "a", newline="", encoding="utf-8") as stream:
                    writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
                    if size == 0:
                        writer.writeheader()
                    writer.writerows(
                        [{k: "" if v != v else v for k, v in row.items()} for row in rows]
                    )
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(file, size)  # no half rows
                raise
        if (
            "TensorBoard" in self._failed
        ):  # until the next good save: each try would begin another file
            return
        with self._may_fail("TensorBoard"):
            try:
                for row in rows:
                    for name, value in row.items():
                        if name not in ("step", "epoch") and value == value:
                            self._board().add_scalar(name, value, row["step"])
            except OSError:
                self._tensorboard = None
                raise

    def write_preview(self, picture: Image.Image, epoch: int, step: int, image_format: str) -> Path:
        """Save a grid of samples as samples/epoch_<n>.<format>, and show it in TensorBoard."""
        file = self.path / "samples" / f"epoch_{epoch:04d}.{image_format}"
        with self._may_fail("samples"):
            save_image(picture, file)
            if "TensorBoard" not in self._failed:
                self._board().add_image(
                    "samples", np.atleast_3d(np.asarray(picture)), step, dataformats="HWC"
                )
        return file

    def write_checkpoint(self, contents: dict, epoch: int | None, keep: int) -> None:
        """ckpt_last.pt, ema_last.pt, and for an epoch ckpt_<epoch>.pt, of which the newest `keep`
        stay (0: all).

        Written in the background from a copy, so training goes on. A failure is reported by the
        next `check_saving`.
        """
        self.finish_saving()
        contents = snapshot(contents)

        def write() -> None:
            slim = {
                key: value
                for key, value in contents.items()
                if key not in ("network", "optimizer", "scaler")
            }
            try:
                if not os.path.samestat(
                    os.stat(self.path / ".lock"), os.fstat(self._lock.fileno())
                ):
                    raise UserError(f"another run has taken the place of this one in {self.path}")
                save_checkpoint(contents, self.path / LAST, keep_previous=self._last_is_whole)
                self._last_is_whole = True
                save_checkpoint(slim, self.path / SLIM)
                if epoch is not None:
                    save_checkpoint(contents, self.path / f"ckpt_{epoch}.pt")
                    earlier = [number for number in numbered_epochs(self.path) if number <= epoch]
                    for old in earlier[:-keep] if keep else []:
                        (self.path / f"ckpt_{old}.pt").unlink()
                self._failed.discard("TensorBoard")
            except Exception as error:
                self._save_error = error

        self._saving = threading.Thread(target=write)
        self._saving.start()

    def check_saving(self) -> bool:
        """Whether the last checkpoint is safe, as far as is known; a full or failing disk is
        reported, once a save.
        """
        error, self._save_error = self._save_error, None
        if error is None:
            return True
        if not isinstance(
            error, OSError | RuntimeError
        ):  # torch.save wraps a full disk in a RuntimeError
            raise error
        self.log(
            f"warning: the checkpoint could not be written ({error}); the one before is whole, training goes on"
        )
        return False

    def finish_saving(self) -> bool:
        """Wait for the checkpoint that is being written; whether it is safe."""
        if self._saving is not None:
            self._saving.join()
        return self.check_saving()

    def close(self) -> None:
        with self._may_fail("TensorBoard"):
            if self._tensorboard is not None:
                self._tensorboard.close()
        self._lock.close()


def numbered_epochs(path: Path) -> list[int]:
    """The epochs whose checkpoints are kept under their number, ascending."""
    return sorted(int(file.stem[5:]) for file in path.glob("ckpt_*.pt") if file.stem[5:].isdigit())


def find_checkpoint(path: Path, start_epoch: int) -> tuple[dict, Path]:
    """The checkpoint that --resume goes on from: of an epoch, or (start_epoch -1) the last one that
    is whole.
    """
    if start_epoch >= 0:
        file = path / f"ckpt_{start_epoch}.pt"
        if not file.exists():
            saved = ", ".join(map(str, numbered_epochs(path))) or "none"
            raise UserError(
                f"--start_epoch {start_epoch}: there is no {file}; saved epochs: {saved}"
            )
        return read_checkpoint(file), file
    last, previous = path / LAST, path / PREVIOUS
    if not last.exists() and not previous.exists():
        raise UserError(
            f"--resume: there is no checkpoint in {path}; leave --resume out to start the run"
        )
    try:
        return read_checkpoint(last), last
    except UserError as error:
        if not previous.exists():
            raise
        tqdm.write(f"warning: {error}; going on from {previous} instead")
        return read_checkpoint(previous), previous
