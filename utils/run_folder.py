"""results/<run_name>/: everything that a run writes, and the lock that keeps a second writer out."""

import csv
import fcntl
import json
import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.checkpoint import LAST, PREVIOUS, SLIM, read_checkpoint, save_checkpoint
from utils.images import save_image
from utils.options import UserError

METRICS, LOG, CONFIG = "metrics.csv", "log.txt", "config.json"


class RunFolder:
    """The folder of one run, opened for writing by one process.

    Raises UserError where the folder cannot be written, is in use by another process, or holds an earlier run while
    `resume` is False.
    """

    def __init__(self, path: Path, resume: bool):
        self.path = path
        try:
            (path / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")
        except OSError as error:
            raise UserError(f"the results folder {path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"the run {path} is being written by another process; choose another --run_name") from None
        if not resume and any((path / name).exists() for name in (CONFIG, LAST, METRICS)):
            raise UserError(f"{path} holds an earlier run: go on with --resume, or choose another --run_name")
        self._logger = logging.getLogger(f"run {path}")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        handler = logging.FileHandler(path / LOG, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._logger.addHandler(handler)
        self._tensorboard: SummaryWriter | None = None

    def log(self, text: str) -> None:
        """To the screen, beside the progress bar, and to log.txt."""
        tqdm.write(text)
        self._logger.info(text)

    def start(self, config: dict, step: int) -> None:
        """Write config.json, and cut the metrics back to `step`, so that a resumed run has no step twice."""
        (self.path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        metrics = self.path / METRICS
        if metrics.exists():
            header, *rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
            temporary = metrics.with_suffix(".tmp")
            temporary.write_text(header + "".join(kept), encoding="utf-8")
            os.replace(temporary, metrics)
        self._tensorboard = SummaryWriter(str(self.path), purge_step=step + 1)

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Append one row per step to metrics.csv and the same numbers to TensorBoard; NaN is left empty."""
        file = self.path / METRICS
        new = not file.exists()
        with open(file, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows([{k: "" if v != v else v for k, v in row.items()} for row in rows])
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "epoch") and value == value:
                    self._tensorboard.add_scalar(name, value, row["step"])

    def write_preview(self, picture: Image.Image, epoch: int, step: int, image_format: str) -> Path:
        """Save a grid of samples as samples/epoch_<n>.<format>, and show it in TensorBoard."""
        file = self.path / "samples" / f"epoch_{epoch:04d}.{image_format}"
        save_image(picture, file)
        self._tensorboard.add_image("samples", np.atleast_3d(np.asarray(picture)), step, dataformats="HWC")
        return file

    def write_checkpoint(self, contents: dict, epoch: int | None) -> None:
        """ckpt_last.pt and ema_last.pt, and ckpt_<epoch>.pt where an epoch is given."""
        slim = {key: value for key, value in contents.items() if key not in ("network", "optimizer", "scaler")}
        save_checkpoint(contents, self.path / LAST, keep_previous=True)
        save_checkpoint(slim, self.path / SLIM)
        if epoch is not None:
            save_checkpoint(contents, self.path / f"ckpt_{epoch}.pt")

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        for handler in list(self._logger.handlers):
            handler.close()
            self._logger.removeHandler(handler)
        self._lock.close()


def find_checkpoint(path: Path, start_epoch: int) -> tuple[dict, Path]:
    """The checkpoint that --resume goes on from: of an epoch, or (start_epoch -1) the last one that is whole."""
    if start_epoch >= 0:
        file = path / f"ckpt_{start_epoch}.pt"
        if not file.exists():
            found = sorted(int(p.stem[5:]) for p in path.glob("ckpt_*.pt") if p.stem[5:].isdigit())
            saved = ", ".join(map(str, found)) or "none"
            raise UserError(f"--start_epoch {start_epoch}: there is no {file}; saved epochs: {saved}")
        return read_checkpoint(file), file
    last, previous = path / LAST, path / PREVIOUS
    if not last.exists() and not previous.exists():
        raise UserError(f"--resume: there is no checkpoint in {path}; leave --resume out to start the run")
    try:
        return read_checkpoint(last), last
    except UserError as error:
        if not previous.exists():
            raise
        tqdm.write(f"warning: {error}; going on from {previous} instead")
        return read_checkpoint(previous), previous
