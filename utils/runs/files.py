"""Checkpoint files: written so that a crash leaves the old one whole, read so that damage is
noticed and no code runs.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from utils.errors import UserError
from utils.runs import archive, foreign, safetensors
from utils.runs.exported import from_exported
from utils.runs.names import PREVIOUS
from utils.runs.safeguards import keep_copy, reason, sync_file, sync_folder
from utils.runs.state_dicts import find_weights

FORMAT_VERSION = 2  # that is written
READABLE_VERSIONS = (1, 2)


def save_checkpoint(contents: Mapping, path: Path, keep_previous: bool = False) -> None:
    """Write by a temporary file, fsync, rename, fsync of the folder.

    With `keep_previous`, the file that was there becomes ckpt_prev.pt. Where the disk is full or
    fails this raises OSError, and the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write_contents(contents, file)
            sync_file(file, temporary)
        if keep_previous and path.exists():
            keep_copy(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class ErrorKeeper:
    """A file to write to that remembers how the disk failed: torch.save reports another error."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_contents(contents: Mapping, file: IO[bytes]) -> None:
    """torch.save, but a disk that is full or fails is an OSError, and nothing else is."""
    keeper = ErrorKeeper(file)
    try:
        torch.save(contents, cast(IO[bytes], keeper))  # it only writes
    except Exception:
        if keeper.error is not None:
            raise keeper.error from None
        raise


def snapshot(value: Any) -> Any:
    """A copy of nested dicts and lists with their tensors in host memory, which later steps do not
    change. Tuples become lists.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    return value


def read_checkpoint(path: Path) -> dict:
    """The contents of a checkpoint file, on the CPU, or UserError with what is wrong with it.

    Bare weights come back as {"network": weights}, and where the file has averaged weights too,
    {"network": weights, "ema": averaged}: a state_dict alone or within the dict of another
    program, in torch's format (also that before 1.6) or as safetensors. Prefixes of wrappers, such
    as `module.`, are taken off. What export.py has written as safetensors, and a folder of
    diffusers' unconditional pipelines or of their network, come back as a checkpoint.
    """
    if path.is_dir():
        return _read_folder(path)
    try:
        # One open file for all checks and for loading: a run may replace the checkpoint meanwhile.
        with open_regular(path) as file:
            contents = read_contents(file, path)
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {reason(error)}") from None
    if not isinstance(contents, dict) or not contents:
        found = type(contents).__name__
        if contents == {}:
            found = "an empty dict"
        raise UserError(f"{path} holds no weights: found {found}, a dict of tensors is needed")
    if "format_version" not in contents:
        return find_weights(contents, path)
    version = contents["format_version"]
    if type(version) is not int or version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise UserError(
            f"{path} has checkpoint format {foreign.shown(str(version))}, "
            f"this code reads {readable}"
        )
    return contents


def _read_folder(path: Path) -> dict:
    """The contents that a folder of diffusers has. Raises UserError for any other folder."""
    from utils.exchange.from_diffusers import is_diffusers_folder, read_diffusers_unet

    if not is_diffusers_folder(path):
        raise UserError(
            f"the checkpoint {path} cannot be read: Is a directory, and none of diffusers"
        )
    return read_diffusers_unet(path)


def read_metadata(path: Path) -> dict:
    """The contents of one of this project's own checkpoints with its tensors on the meta device:
    names and shapes, but no numbers, so that a large file is described in milliseconds.

    Raises UserError for any other file. Damage within the tensors is found by `read_checkpoint`. A
    folder of diffusers, and what export.py has written, is read as there, tensors and all.
    """
    if path.is_dir():
        return _read_folder(path)
    try:
        with open_regular(path) as file:
            head = file.read(foreign.HEAD_BYTES)
            if safetensors.is_safetensors(head):
                contents = read_contents(file, path)
            elif archive.is_zip(file, head):
                archive.check_zip(file, path, checksums=False)
                contents = archive.load(file, path, device="meta")
            else:
                raise UserError(f"{path} is no checkpoint of this project")
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {reason(error)}") from None
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise UserError(f"{path} is no checkpoint of this project")
    return contents


def open_regular(path: Path) -> IO[bytes]:
    """The file, opened for reading. UserError for a pipe or a device, which would never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a pipe, a socket or a device; a checkpoint is a file")
    return open(path, "rb")  # a folder raises IsADirectoryError


def read_contents(file: IO[bytes], path: Path) -> Any:
    """What lies in the file, of whichever format; UserError where it is none that can be read."""
    file.seek(0)
    head = file.read(foreign.HEAD_BYTES)
    if safetensors.is_safetensors(head):
        weights, metadata = safetensors.read(file, path)
        return from_exported(weights, metadata, FORMAT_VERSION) or weights
    if archive.is_zip(file, head):
        archive.check_zip(file, path)
    elif archive.is_legacy(head):
        archive.check_legacy(file, path)
    else:
        raise UserError(foreign.describe(head, path))
    return archive.load(file, path)
