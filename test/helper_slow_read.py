"""train.py whose images take SLOW_READ seconds each to decode."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import train  # noqa: E402
from utils.data import reading  # noqa: E402


def decode_slowly(*what):
    time.sleep(float(os.environ.get("SLOW_READ", 0)))
    return decode(*what)


decode, reading.decode = reading.decode, decode_slowly
if __name__ == "__main__":
    train.opt.run_script(train.main)
