"""Runs scripts of tools/ for the tests, each in a fork of this process, which has torch imported.

A script is run as a user runs it (as __main__, with its own arguments, folder and output); only the
seconds that Python and torch take to start are saved. Nothing here computes gradients: torch cannot
do so in a fork of a process that has.

Reads one JSON request per line from stdin, with the keys script, args, folder, stdout and stderr
(paths) and timeout (seconds), and answers each with a line: the exit status; -9 is a timeout. An
empty line ends it.
"""

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def import_what_scripts_import() -> None:
    import torch
    import torch.utils.tensorboard
    from PIL import Image

    import utils.generation
    import utils.training.fit
    import utils.training.plan
    import utils.training.previews
    import utils.training.recipe_choice
    import utils.training.recorder
    import utils.training.resume  # noqa: F401

    Image.init()
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports torch's compiler


def run(request: dict) -> None:
    """In the fork: become the script, and never return."""
    os.setsid()
    os.chdir(request["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(os.devnull)
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", errors=errors, closefd=False)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # as Python keeps the first ones
    sys.argv = [request["script"], *request["args"]]
    status = 1
    try:
        runpy.run_path(request["script"], run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = status_of(stop)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def status_of(stop: SystemExit) -> int:
    """As Python ends a script."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def wait(child: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    pause = 0.001
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def main() -> None:
    import_what_scripts_import()
    for line in sys.stdin:
        if not line.strip():  # the end; others may hold the pipe open
            return
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        print(wait(child, request["timeout"]), flush=True)


if __name__ == "__main__":
    main()
