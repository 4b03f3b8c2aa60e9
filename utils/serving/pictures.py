"""Pictures that clients send with a request: base64 of an image file, of bounded size."""

import base64
import binascii
import io
import re
import threading

from PIL import Image

from utils.data.jpeg import scans_of
from utils.data.silence import quiet_pillow
from utils.serving.refusal import Refusal, invalid

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 2**25  # of a picture: what it takes to decode one lies in memory
# A progressive JPEG may go over its picture as often as it likes, at a few bytes each time.
MOST_SCANS = 100  # usual are ten
DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,")

# One picture is decoded at a time: several large ones at once would take several times the memory.
one_at_a_time = threading.Lock()


def picture_of(text: str, name: str) -> bytes:
    """The file in a field of a request, base64 or a data URL. Raises Refusal where it is none that
    may be decoded: by its head, before its pixels take memory.
    """
    start = DATA_URL.match(text)
    try:
        data = base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{name} is no base64 of an image file", name) from None
    width, height = sides_of(data, name)
    if width * height > MOST_PIXELS:
        raise _too_large(name)
    return data


def _too_large(name: str) -> Refusal:
    return invalid(f"{name} has too many pixels: {MOST_PIXELS:,} are the most", name)


def sides_of(data: bytes, name: str) -> tuple[int, int]:
    """(W, H) of an image file, as its head says. Raises Refusal for anything else, and for one that
    would take unusually long to decode.
    """
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format == "JPEG" and scans_of(data) > MOST_SCANS:
                raise invalid(f"{name} is a JPEG of more than {MOST_SCANS} scans", name)
            return image.size
    except Refusal:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except Exception:  # whatever Pillow's plugins raise on damaged files
        kinds = ", ".join(FORMATS)
        raise invalid(f"{name} is no file that can be read; known are {kinds}", name) from None
