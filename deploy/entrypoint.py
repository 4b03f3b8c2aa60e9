"""The first process of the container: starts the server, and lets training runs save at the end.

A run goes on when the server that started it ends, but no process goes on when the container does.
So when the server has ended, all that still runs is asked to end and waited for. Docker, podman and
Kubernetes kill what has not ended in time: give them two minutes instead of ten or thirty seconds.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).resolve().parent.parent / "tools" / "serve.py"


def main() -> None:
    # In a session of its own, so that Ctrl-C reaches it only by way of this process.
    server = subprocess.Popen([sys.executable, str(SERVER), *sys.argv[1:]], start_new_session=True)

    def hand_on(number: int, frame: object) -> None:
        os.kill(server.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    status = wait_for(server.pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if os.getpid() == 1:  # else, it would be all processes of a machine
        end_all_others()
    sys.exit(status)


def wait_for(process: int) -> int:
    """The exit status of the server. Processes without a parent, which fall to the first process of
    a container, are taken note of when they end, as somebody must.
    """
    while True:
        ended, how = os.wait()
        if ended == process:
            status = os.waitstatus_to_exitcode(how)
            return status if status >= 0 else 128 - status


def end_all_others() -> None:
    try:
        os.kill(-1, signal.SIGTERM)  # all but this one
    except ProcessLookupError:  # there is none
        return
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
