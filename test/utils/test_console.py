"""What goes to the terminal, and that none of it ends a run."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
from helpers import DEMO, ROOT

from utils import console
from utils.console import Progress, progress_over, say

SHOE = "运动鞋"
NOT_UTF8 = "a\udcff"  # what Python makes of the byte 255 in a file name

PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from utils.console import Progress, make_output_robust, say
make_output_robust()
"""


def python(code, **options):
    options = {"capture_output": True, "timeout": 60, **options}
    return subprocess.run([sys.executable, "-c", PROGRAM + code], **options)


@pytest.fixture
def log(monkeypatch, capsys):
    """What was written to stderr, which is no terminal here, since the test began."""
    monkeypatch.setattr(console, "_passing_lines", console.LineSchedule())
    return Log(capsys)


class Log:
    def __init__(self, capsys):
        self.capsys = capsys
        self.text = ""

    def getvalue(self):
        self.text += self.capsys.readouterr().err
        return self.text


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


# --- Streams and lines ---


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("unbuffered", [False, True])
def test_any_text_in_any_encoding(encoding, unbuffered):
    code = f"say({SHOE!r}); say({NOT_UTF8!r}, error=True); print({SHOE!r}, {NOT_UTF8!r}, 'é')"
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    if unbuffered:
        env["PYTHONUNBUFFERED"] = "1"
    done = python(code, env=env)
    assert done.returncode == 0 and done.stderr.split() == [b"a\\udcff"]
    shoe = SHOE if encoding == "utf-8" else "\\u8fd0\\u52a8\\u978b"
    accent = "\\xe9" if encoding == "ascii" else "é"
    expected = f"{shoe}\n{shoe} a\\udcff {accent}\n".encode(encoding)
    assert done.stdout.replace(b"\r", b"") == expected


def test_say_needs_no_robust_streams(monkeypatch, capsys):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say(f"{SHOE} {NOT_UTF8}")
    assert stream.buffer.getvalue() == b"\\u8fd0\\u52a8\\u978b a\\udcff\n"
    stream.close()
    say("to a closed stream")
    monkeypatch.setattr(sys, "stdout", None)  # pythonw
    say("to none")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_no_error(stream, unbuffered, tmp_path):
    """What `script | head -1` does, for either stream."""
    code = f"""
for i in range(20_000):
    say("a line of some length", error={stream == "stderr"})
    print("and another", file=sys.{stream})
with Progress(10, title="work") as progress:
    progress.update(10)
open(sys.argv[1], "w").write("came to its end")
"""
    read_end, write_end = os.pipe()
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    other = "stderr" if stream == "stdout" else "stdout"
    ending = tmp_path / "ending"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code, ending],
        env=env,
        **{stream: write_end, other: subprocess.PIPE},
    )
    os.close(write_end)
    os.read(read_end, 10)
    os.close(read_end)
    said = process.communicate(timeout=60)[stream == "stdout"]
    assert process.returncode == 0 and ending.read_text() == "came to its end"
    assert b"Error" not in said and b"ignored" not in said


def test_a_terminal_that_goes_away_is_no_error(tmp_path):
    code = f"""
with Progress(400, title="work") as progress:
    for i in range(400):
        progress.update(loss="1")
        say("line")
        time.sleep(0.0005)
open({str(tmp_path / "done")!r}, "w").write("done")
"""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "import signal; signal.signal(signal.SIGHUP, 1)\n" + code],
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    os.read(master, 10)
    os.close(master)
    assert process.wait(timeout=60) == 0 and (tmp_path / "done").exists()


def test_a_full_disk_under_a_log_is_still_an_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        assert (
            python(
                "print('x'); sys.stdout.flush()",
                capture_output=False,
                stdout=full,
                stderr=subprocess.PIPE,
            ).returncode
            != 0
        )
    with open("/dev/full", "wb") as full:  # but a line of progress ends no training
        code = "say('x', error=True); Progress(1).close()"
        assert python(code, capture_output=False, stderr=full, stdout=full).returncode == 0


def test_robust_twice_is_robust_once():
    done = python("before = sys.stdout; make_output_robust(); print(sys.stdout is before)")
    assert done.stdout.split() == [b"True"]


# --- Progress where there is no terminal ---


def test_lines_of_progress(log):
    clock = Clock()
    with Progress(1000, title="training", initial=200, clock=clock) as progress:
        for _ in range(320):
            clock.now += 0.125
            progress.update(loss="0.0123", images_per_second=812)
    assert log.getvalue().splitlines() == [
        "training: 280 of 1,000 steps (28%), loss 0.0123, images per second 812, 0:01:30 left",
        "training: 440 of 1,000 steps (44%), loss 0.0123, images per second 812, 0:01:10 left",
        "training: 520 of 1,000 steps (52%), loss 0.0123, images per second 812, took 0:00:40",
    ]


def test_few_lines_in_an_hour_and_none_of_them_late(log):
    clock = Clock()
    times = []
    with Progress(None, unit="image", clock=clock) as progress:
        for _ in range(3 * 3600):
            clock.now += 1
            before = log.getvalue()
            progress.update()
            if log.getvalue() > before:
                times.append(clock.now - 1000)
    assert times[:6] == [10, 30, 70, 150, 310, 610] and times[-1] > 3 * 3600 - 301
    assert sum(moment <= 3600 for moment in times) < 24
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()
    assert log.getvalue().splitlines()[-1] == "10,800 images, took 3:00:00"


def test_bars_that_vanish_share_their_lines(log):
    clock = Clock()
    for _ in range(240):  # an hour of bars of 15 seconds each
        with Progress(15, unit="call", leave=False, clock=clock) as progress:
            for _ in range(15):
                clock.now += 1
                progress.update()
    assert 5 < len(log.getvalue().splitlines()) < 24


def test_a_bar_that_is_not_shown_says_nothing(log):
    with Progress(10, shown=False) as progress:
        progress.update(10)
    assert progress.done == 10 and log.getvalue() == ""


def test_short_work_has_one_line_and_close_may_be_called_twice(log):
    progress = Progress(1, title=SHOE + NOT_UTF8, unit="image")
    progress.update(loss=np.float32(0.5))
    progress.close()
    progress.close()
    progress.update()
    assert log.getvalue() == f"{SHOE}a\\udcff: 1 of 1 image (100%), loss 0.5, took 0:00:00\n"


def test_an_error_in_the_work_passes_through(log):
    with pytest.raises(KeyError), Progress(10) as progress:
        progress.update(3)
        raise KeyError
    assert "3 of 10 steps (30%)" in log.getvalue()


def test_progress_over(log):
    assert list(progress_over("abc", title="reading", leave=True)) == ["a", "b", "c"]
    assert log.getvalue().startswith("reading: 3 images, ")
    assert list(progress_over(iter([]), 0)) == []


def test_tensors_are_not_read(log):
    class Unread(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            raise AssertionError(f"{function} was called")

    progress = Progress(10, clock=lambda: 1e9)
    with pytest.raises(TypeError, match="loss is a Unread; read it before"):
        progress.update(loss=torch.Tensor._make_subclass(Unread, torch.zeros(())))


def test_updates_are_quick(log):
    progress = Progress(10**6)
    start = time.perf_counter()
    for _ in range(20_000):
        progress.update(loss="0.0123", images_per_second=812.0)
    assert (time.perf_counter() - start) / 20_000 < 20e-6


def test_a_stream_that_has_been_closed_is_no_error(monkeypatch):
    stream, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(10, clock=clock)
    stream.close()
    clock.now += 100
    progress.update()
    progress.close()


# --- On a terminal ---


def on_a_terminal(code):
    """What a program shows on a terminal of 100 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code], stdout=slave, stderr=slave, stdin=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: the other end was closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert process.wait(timeout=60) == 0
    return shown.decode()


def test_a_bar_on_a_terminal():
    shown = on_a_terminal("""
with Progress(30, title="training", initial=10) as progress:
    for i in range(20):
        time.sleep(0.02)
        progress.update(loss="0.0123", images_per_second=812)
        if i == 10:
            say("a line beside it")
start = time.perf_counter()
with Progress(20_000, leave=False) as progress:
    for i in range(20_000):
        progress.update(loss="0.0123", images_per_second=812.0)
say(f"quick: {(time.perf_counter() - start) / 20_000 < 20e-6}")
""")
    assert "training:  33%" in shown and "training: 100%" in shown and "30/30" in shown
    assert "loss 0.0123, images per second 812" in shown and "█" in shown
    assert "\ra line beside it\r\n" in shown.replace(" " * 10, "").replace("\r ", "\r")
    assert "quick: True" in shown
    assert 4 <= shown.split("a line beside")[1].split("quick")[0].count("\r")


# --- The scripts ---


def run_script(name, *args, encoding, folder, status=0, **options):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *args]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, timeout=120, **options)
    assert done.returncode == status, done.stderr.decode(encoding)
    assert b"Traceback" not in done.stderr and b"UnicodeEncodeError" not in done.stderr
    return done


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", ["prepare_dataset", "option_tables", "benchmark"])
def test_names_in_errors_and_help(name, encoding, tmp_path):
    wrong = run_script(name, "--" + SHOE, NOT_UTF8, encoding=encoding, folder=tmp_path, status=2)
    assert b"error" in wrong.stderr
    shown = run_script(name, "--help", encoding=encoding, folder=tmp_path)
    assert b"usage" in shown.stdout


def test_prepare_dataset_names_a_folder(tmp_path):
    out = tmp_path / (SHOE + NOT_UTF8)
    out.mkdir()
    (out / "a").touch()
    done = run_script(
        "prepare_dataset", "mnist", "--out", out, encoding="ascii", folder=tmp_path, status=2
    )
    assert b"\\u978b" in done.stderr and b"is not empty" in done.stderr


def test_train_plans_with_any_class_name(tmp_path):
    for number, name in enumerate((SHOE, NOT_UTF8, "été")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        file = sorted((DEMO / "bag").iterdir())[number]
        (folder / f"{name}.png").write_bytes(file.read_bytes())
        (folder / f"{name}-broken.png").write_bytes(b"")
    options = ["--dataset_path", tmp_path / "images", "--result_path", tmp_path / "results"]
    options += ["--plan", "--use_gpu", "-1", "--num_workers", "0", "--batch_size", "2"]
    done = run_script("train", *options, encoding="ascii", folder=tmp_path)
    assert b"\\u978b" in done.stdout and b"\\xff" in done.stdout and b"\r" not in done.stderr


def test_generate_names_a_file(tmp_path):
    options = ["--weight_path", f"é{SHOE}.pt", "--use_gpu", "-1"]
    done = run_script("generate", *options, encoding="latin-1", folder=tmp_path, status=2)
    assert "é\\u8fd0\\u52a8\\u978b.pt".encode("latin-1") in done.stderr
