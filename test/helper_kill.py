"""A training script (SCRIPT, by default train) with accidents, as the environment says.

KILL_AT_STEP=n: it kills itself with SIGKILL after training step n, when the saves before it are on
disk. FAIL_AT_STEP=n: an error after training step n. SLOW_SAVE=s: each file of a checkpoint takes s
seconds longer.
"""

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.ema import EMA  # noqa: E402
from utils.runs import folder  # noqa: E402
from utils.training import stepping  # noqa: E402

is_timing = False


def seconds_of_step(*args):
    """The steps that are only timed have no accidents."""
    global is_timing
    is_timing = True
    try:
        return time_steps(*args)
    finally:
        is_timing = False


def update_and_die(self, network, step):
    update(self, network, step)
    if step + 1 == int(os.environ.get("KILL_AT_STEP", 0)):
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        os.kill(os.getpid(), signal.SIGKILL)


def update_with_accidents(self, network, step):
    if is_timing:
        update(self, network, step)
        return
    update_and_die(self, network, step)
    if step + 1 == int(os.environ.get("FAIL_AT_STEP", 0)):
        raise RuntimeError("an error on purpose")


def save_slowly(*args, **options):
    time.sleep(float(os.environ.get("SLOW_SAVE", 0)))
    save(*args, **options)


time_steps, stepping.seconds_of_step = stepping.seconds_of_step, seconds_of_step
update, EMA.update = EMA.update, update_with_accidents
save, folder.save_checkpoint = folder.save_checkpoint, save_slowly
train = importlib.import_module(f"tools.{os.environ.get('SCRIPT', 'train')}")
if __name__ == "__main__":
    train.opt.run_script(train.main)
