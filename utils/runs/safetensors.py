"""The safetensors format: the length of the header in 8 bytes, the header in JSON, the numbers.

Read and written here without the library: the format is small, and the library no requirement.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from torch import Tensor

from utils.errors import UserError
from utils.runs.foreign import shown
from utils.runs.safeguards import sync_file

LENGTH_BYTES = 8
METADATA = "__metadata__"  # of a header: texts about the file
MAX_HEADER = 16 * 2**20  # bytes: over 100,000 tensors; JSON takes many times its size in memory
ALIGNMENT = 8  # bytes: of the numbers' beginning
MAX_DIMENSIONS = 32
MAX_LENGTH = 2**40  # of a dimension, and bytes of a file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file, and how it is to be read. `begin` and `end` are bytes,
    counted from the end of the header.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so is a safetensors file, whole or cut off."""
    if len(head) <= LENGTH_BYTES:
        return False
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    return 2 <= length < 2**40 and head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def read(file: IO[bytes], path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the file by their names, and what its header says beside them. UserError where
    the file is damaged, or holds numbers of a kind that is not in DTYPES.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    data_size = size - LENGTH_BYTES - length
    if data_size < 0:
        raise UserError(
            f"{path} is a safetensors file that is cut off: its header alone has {length:,} bytes, "
            f"the file {size:,}; copy or download it again"
        )
    if length > MAX_HEADER:
        raise UserError(
            f"{path} is a safetensors file with a header of {length:,} bytes; up to {MAX_HEADER:,} "
            "are read"
        )
    entries, metadata = parse_header(file.read(length), path)
    check_layout(entries, data_size, path)
    return {entry.name: read_tensor(file, entry, path) for entry in entries}, metadata


def write(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file, by a temporary one; `metadata` goes into its header.

    Raises OSError where the disk refuses it, ValueError for numbers of a kind not in DTYPES.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    place = 0
    for name, tensor in weights.items():
        if tensor.dtype not in names:
            raise ValueError(f"{name} holds {tensor.dtype}, which the format does not know")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
            for tensor in weights.values():
                raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                file.write(raw.numpy().tobytes())
            sync_file(file, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is a damaged safetensors file: {what}; copy or download it again")


def parse_header(data: bytes, path: Path) -> tuple[list[Entry], dict[str, str]]:
    """The tensors that a header describes, in the order in which they lie in the file, and its
    texts about the whole.
    """
    try:
        header = json.loads(data, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        raise damaged(path, "its header is not a JSON object with unique names") from None
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    metadata = header.pop(METADATA, {})
    are_texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    entries = [parse_entry(name, about, path) for name, about in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    return entries, metadata if are_texts else {}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object. ValueError where a name occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def parse_entry(name: str, about: Any, path: Path) -> Entry:
    """One tensor's entry of the header. UserError where it makes no sense."""
    wrong = damaged(path, f"the entry of {shown(name)} in its header makes no sense")
    if not isinstance(about, dict):
        raise wrong
    dtype, shape, offsets = about.get("dtype"), about.get("shape"), about.get("data_offsets")
    if not isinstance(dtype, str) or not are_lengths(shape) or not are_lengths(offsets):
        raise wrong
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise wrong
    if dtype not in DTYPES:
        raise UserError(
            f"{path} holds numbers of the type {shown(dtype, 20)} in {shown(name)}, which cannot "
            f"be loaded; {', '.join(DTYPES)} can"
        )
    if math.prod(max(length, 1) for length in shape) > MAX_LENGTH:  # torch cannot count so far
        raise wrong
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise wrong
    return Entry(name, DTYPES[dtype], tuple(shape), begin, end)


def are_lengths(values: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0 to MAX_LENGTH."""
    if not isinstance(values, list):
        return False
    # Not isinstance: True and False are whole numbers for Python.
    return all(type(value) is int and 0 <= value <= MAX_LENGTH for value in values)


def check_layout(entries: list[Entry], data_size: int, path: Path) -> None:
    """UserError unless the tensors cover the data once, without gaps: so no file can ask for more
    memory than it has bytes.
    """
    place = 0
    for entry in entries:
        if entry.begin != place:
            raise damaged(path, f"{shown(entry.name)} overlaps another tensor or leaves a gap")
        place = entry.end
    if place > data_size:
        raise UserError(
            f"{path} is a safetensors file that is cut off: its header describes {place:,} bytes "
            f"of numbers, {data_size:,} are there; copy or download it again"
        )
    if place < data_size:
        raise damaged(path, f"{data_size - place:,} bytes at its end belong to no tensor")


def read_tensor(file: IO[bytes], entry: Entry, path: Path) -> Tensor:
    """The numbers of one tensor. The format is little-endian, as are the machines torch runs on."""
    size = entry.end - entry.begin
    if size == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    data = bytearray(file.read(size))  # the entries are in the order of the file
    if len(data) != size:
        raise damaged(path, "it became shorter while it was read")
    if entry.dtype == torch.bool:
        # Any other byte than 0 and 1 is no value of a bool.
        return torch.frombuffer(data, dtype=torch.uint8).reshape(entry.shape) != 0
    return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)
