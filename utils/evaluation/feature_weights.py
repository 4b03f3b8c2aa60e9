"""The files of feature networks: where they lie, and whether they are the right ones."""

import hashlib
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.runs.files import open_regular

INCEPTION_SHA256 = "6726825d"  # the first digits, for the weights of the published FID
INCEPTION_FILE = f"weights-inception-2015-12-05-{INCEPTION_SHA256}.pth"
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20  # bytes


def downloaded_inception() -> Path:
    """torch-fidelity's own file in torch's cache, downloaded first where it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / INCEPTION_FILE
    if file.exists():
        return file
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:  # RuntimeError: another checksum
        raise UserError(
            f"the Inception weights are not in {file} and could not be downloaded from "
            f"{URL_INCEPTION_V3} ({first_line(error)}): pass --feature_weights FILE"
        ) from None
    return file


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Connections made meanwhile fail after that time without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def sha256_of(file: Path) -> str:
    """The checksum of a file's contents. UserError where it cannot be read, or never ends."""
    digest = hashlib.sha256()
    try:
        with open_regular(file) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"the weights {file} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def digest_of(weights: Mapping[str, Tensor], about: object) -> str:
    """A digest of tensors and of whatever else decides the features."""
    digest = hashlib.sha256(repr(about).encode())
    for key, tensor in weights.items():
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        numbers = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(numbers.numpy().data)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
