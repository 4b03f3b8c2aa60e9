"""Pillow and LibTIFF print nothing: what is wrong with a file is said by its error."""

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from functools import cache

from PIL import Image

_silence = threading.Lock()
_decodes_under_way = 0
_warnings_before = warnings.catch_warnings()

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else errors are printed


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings of Pillow on stderr: what is wrong with a file is said by its error.

    The filters of `warnings` belong to all threads: the first decode under way sets them and the
    last one puts the former ones back.
    """
    global _decodes_under_way, _warnings_before
    with _silence:
        if _decodes_under_way == 0:
            _silence_libtiff()
            _warnings_before = warnings.catch_warnings()
            _warnings_before.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _decodes_under_way += 1
    try:
        yield
    finally:
        with _silence:
            _decodes_under_way -= 1
            if _decodes_under_way == 0:
                _warnings_before.__exit__(None, None, None)


@cache
def _silence_libtiff() -> None:
    """LibTIFF prints errors to stderr beside reporting them. Pillow has no switch for that."""
    try:
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
    except (AttributeError, OSError):  # built without LibTIFF, or with it inside
        pass
