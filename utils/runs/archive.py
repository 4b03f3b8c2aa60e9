"""Files of torch.save: the checks before torch may open one, and what to say where it cannot.

Since torch 1.6 such a file is a zip archive; before, it was a row of pickles and raw numbers.
"""

import itertools
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from utils.errors import UserError, name_list
from utils.runs.foreign import PROGRAMS_BY_CLASS, shown

ZIP_MAGIC = b"PK\x03\x04"
# Protocol 2, and torch's own magic number as the first pickle.
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
SAVE_THE_WEIGHTS = "save its weights alone, with torch.save(network.state_dict(), file)"

# The unpickler lets this one through, and `bytearray(10**11)` is a few bytes long. It knows classes
# by one opcode, GLOBAL, which ends both the module and the name with a new line; so a class folder
# of that name is none.
MEMORY_BOMB = b"\nbytearray\n"
CHUNK = 1 << 20  # bytes
OPCODES_READ = 200_000  # for a message: enough for any checkpoint, and bounded


def is_zip(file: IO[bytes], head: bytes) -> bool:
    """Whether the file is a zip archive, whole, cut off, or with its first bytes damaged."""
    return head.startswith(ZIP_MAGIC) or zipfile.is_zipfile(file)


def is_legacy(head: bytes) -> bool:
    """Whether the file was written by torch before 1.6 (or in that format)."""
    return head.startswith(LEGACY_MAGIC)


def check_zip(file: IO[bytes], path: Path, checksums: bool = True) -> None:
    """UserError for a zip archive that is damaged, unpacks to too much, or is not torch.save's.

    `checksums`: whether all of it is read, to find damage within its parts.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            check_kind([part.filename for part in parts], path)
            unpacked = sum(part.file_size for part in parts)
            if unpacked > size or any(part.compress_type for part in parts):
                raise UserError(
                    f"{path} is no checkpoint: it unpacks to more than itself, which the files of "
                    "torch.save do not"
                )
            # torch.load skips the checksums: one flipped bit would load as another number.
            damaged = archive.testzip() if checksums else None
            if damaged is not None:
                raise UserError(
                    f"{path} is damaged: the checksum of its part {shown(damaged)} is wrong; "
                    "copy or download it again"
                )
            check_pickles(archive, parts, path)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError):
        raise UserError(
            f"{path} is damaged or no checkpoint: parts of the {size:,} bytes are missing or "
            "changed; copy or download it again"
        ) from None


def check_kind(names: list[str], path: Path) -> None:
    """UserError for the zip archives of other programs, by the names of their parts."""
    if any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
        if any(re.match(r"[^/]+/(code/|constants\.pkl$)", name) for name in names):
            raise UserError(
                f"{path} is a TorchScript program, not weights; {SAVE_THE_WEIGHTS} where "
                "it was made"
            )
        return
    if any(name.endswith(".npy") for name in names):
        raise UserError(f"{path} is an archive of NumPy arrays (.npz), no checkpoint")
    if "model.weights.h5" in names:
        raise UserError(f"{path} is a Keras model; its network cannot be loaded here")
    inside = name_list([shown(name) for name in names], 3) or "nothing"
    raise UserError(
        f"{path} is a zip archive that holds {inside}, no checkpoint; if there is one inside, "
        "unpack it first"
    )


def check_pickles(archive: zipfile.ZipFile, parts: list[zipfile.ZipInfo], path: Path) -> None:
    """UserError where a pickle in the archive would take memory that is not in the file."""
    for part in parts:
        if part.filename.endswith(".pkl"):
            with archive.open(part) as stream:
                check_bomb(stream, path)


def check_legacy(file: IO[bytes], path: Path) -> None:
    """UserError where a file of torch before 1.6 would take memory that is not in the file."""
    file.seek(0)
    check_bomb(file, path)


def check_bomb(stream: IO[bytes], path: Path) -> None:
    end = b""
    while True:
        chunk = stream.read(CHUNK)
        if not chunk:
            return
        if MEMORY_BOMB in end + chunk:
            raise UserError(
                f"{path} cannot be loaded as plain tensors and numbers: it holds a bytearray, "
                "which no checkpoint does"
            )
        end = chunk[-len(MEMORY_BOMB) :]


def load(file: IO[bytes], path: Path, device: str = "cpu") -> Any:
    """torch.load of checked contents, tensors and numbers only. On the device "meta" the numbers
    of tensors are not read.
    """
    file.seek(0)
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception:  # a hostile or foreign file can fail anywhere in the unpickler
        why = describe_failure(file)
    raise UserError(f"{path} cannot be loaded as plain tensors and numbers: {why}")


def describe_failure(file: IO[bytes]) -> str:
    """Why a file of torch.save cannot be loaded: the objects in it, or else damage."""
    classes = sorted(name for name in pickled_classes(file) if not is_plain(name))
    for name in classes:
        for prefix, program in PROGRAMS_BY_CLASS.items():
            if name.startswith(prefix):
                return (
                    f"it is a file of {program}, with objects of {shown(name)} in it; "
                    f"{SAVE_THE_WEIGHTS} there"
                )
    if classes:
        named = name_list([shown(name) for name in classes], 3)
        return (
            f"it holds objects of {named}, and loading those can run code; {SAVE_THE_WEIGHTS} "
            "where it was made"
        )
    file.seek(0)
    if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:  # then its checksums were right
        return f"torch {torch.__version__} cannot make sense of it; a newer one may have written it"
    return "it is cut off or damaged; copy or download it again"


def is_plain(name: str) -> bool:
    """Whether objects of this class are what tensors are made of in torch's files."""
    if name in ("collections.OrderedDict", "torch.nn.parameter.Parameter"):
        return True
    # torch.float32, torch.FloatStorage, torch.Size; not the layers in torch.nn
    return name.startswith("torch._utils._rebuild") or re.fullmatch(r"torch\.\w+", name) is not None


def pickled_classes(file: IO[bytes]) -> set[str]:
    """The classes and functions that a file of torch.save names, as far as it can be read. Nothing
    of it runs: the pickle is only listed.
    """
    names: set[str] = set()
    try:
        file.seek(0)
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            with zipfile.ZipFile(file) as archive:
                pickles = [part for part in archive.namelist() if part.endswith("/data.pkl")]
                with archive.open(pickles[0]) as stream:
                    names |= classes_of_pickle(stream)
        else:
            file.seek(0)
            for _ in range(4):  # magic number, protocol, system, contents
                names |= classes_of_pickle(file)
    except Exception:  # noqa: S110  damaged: what was read until there counts
        pass
    return names


def classes_of_pickle(stream: IO[bytes]) -> set[str]:
    """ "module.name" of each global that one pickle loads."""
    names: set[str] = set()
    texts: list[str] = []  # the last strings: protocol 4 takes module and name from the stack
    for opcode, argument, _ in itertools.islice(pickletools.genops(stream), OPCODES_READ):
        if opcode.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL" and len(texts) == 2:
            names.add(".".join(texts))
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
    return names
