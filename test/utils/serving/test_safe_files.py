"""Reading what may be half-written, endless, or lead elsewhere."""

import json
import os
import signal

import pytest

from utils.serving.safe_files import (
    GrowingLines,
    is_plain_name,
    names_in,
    open_below,
    read_json,
    read_tail,
    without_paths,
    write_json,
)


@pytest.fixture(autouse=True)
def no_endless_waiting():
    signal.alarm(20)
    yield
    signal.alarm(0)


def test_only_files_below_the_folder_are_opened(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "samples").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.png").write_text("secret")
    (run / "samples" / "good.png").write_text("good")
    (run / "samples" / "link.png").symlink_to(outside / "secret.png")
    (run / "linked").symlink_to(outside)
    os.mkfifo(run / "samples" / "pipe.png")
    with open_below(run, "samples", "good.png") as file:
        assert file.read() == b"good"
    for parts in (
        ("samples", "link.png"),
        ("linked", "secret.png"),
        ("samples", "pipe.png"),
        ("..", "outside", "secret.png"),
        ("samples", "../../outside/secret.png"),
        ("samples",),
        ("samples", ""),
        ("samples", "a\0b"),
    ):
        with pytest.raises(OSError):
            open_below(run, *parts)
    (tmp_path / "linked_run").symlink_to(run)
    with pytest.raises(OSError):
        open_below(tmp_path / "linked_run", "samples", "good.png")
    assert names_in(tmp_path / "linked_run") == [] and names_in(run) == ["linked", "samples"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", '{"a": ', "\xff\xfe", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"],
)
def test_json_that_is_damaged_is_nothing(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert read_json(tmp_path, "status.json") == {}


def test_json_can_be_sent_on(tmp_path):
    (tmp_path / "a.json").write_text('{"a": NaN, "b": [-Infinity, 1.5], "c\\ud800": "\\udcff"}')
    found = read_json(tmp_path, "a.json")
    assert found == {"a": None, "b": [None, 1.5], "c\\ud800": "\\udcff"}
    json.dumps(found, allow_nan=False).encode()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "queue.json"
    write_json({"a": 1}, file)
    assert read_json(tmp_path, "queue.json") == {"a": 1}
    (tmp_path / "queue.json.tmp").mkdir()
    with pytest.raises(OSError):
        write_json({"a": 2}, file)
    assert read_json(tmp_path, "queue.json") == {"a": 1}


def test_lines_come_once_and_whole(tmp_path):
    lines = GrowingLines(tmp_path, "a.csv")
    file = tmp_path / "a.csv"
    assert lines.read() == (False, [])
    file.write_bytes(b"one\ntwo\r\nthr")
    assert lines.read() == (True, [b"one", b"two\r"])
    assert lines.read() == (False, [])
    with open(file, "ab") as stream:
        stream.write(b"ee\n")
    assert lines.read() == (False, [b"three"])
    file.write_bytes(b"new\n")  # shorter
    assert lines.read() == (True, [b"new"])
    (tmp_path / "b").write_bytes(b"new\nand longer\n")
    os.replace(tmp_path / "b", file)
    assert lines.read() == (True, [b"new", b"and longer"])
    file.unlink()
    assert lines.read() == (True, [])


def test_another_file_of_the_same_name_is_read_from_its_start(tmp_path):
    """File systems give the number of a file that was removed to the next one."""
    lines = GrowingLines(tmp_path, "a.csv")
    file = tmp_path / "a.csv"
    file.write_bytes(b"1,9.0\n2,9.0\n3,9.0\n")
    assert lines.read() == (True, [b"1,9.0", b"2,9.0", b"3,9.0"])
    lines.put_back(b"3,9.0")
    with open(file, "r+b") as stream:  # in its place, and longer
        stream.write(b"1,0.5\n2,0.5\n3,0.5\n4,0.5\n")
    assert lines.read() == (True, [b"1,0.5", b"2,0.5", b"3,0.5", b"4,0.5"])
    lines.put_back(b"4,0.5")
    with open(file, "r+b") as stream:  # the last line alone has changed, as it may
        stream.seek(-6, os.SEEK_END)
        stream.write(b"4,0.5,7\n")
    assert lines.read() == (False, [b"4,0.5,7"])


def test_the_end_of_a_long_text(tmp_path):
    (tmp_path / "output.txt").write_text("x" * 100_000 + "\nlast words")
    assert read_tail(tmp_path, "output.txt").endswith("\nlast words")
    assert len(read_tail(tmp_path, "output.txt")) < 20_000
    assert read_tail(tmp_path, "none.txt") == ""


def test_texts_name_no_paths(tmp_path):
    roots = [tmp_path / "results", tmp_path]
    assert without_paths(f"see {tmp_path}/results/a b/log.txt.", roots) == "see a b/log.txt."
    assert without_paths(f"below {tmp_path}/results, ok", roots) == "below results, ok"
    assert without_paths(f"{tmp_path}/results-2/x", roots) == "results-2/x"
    assert without_paths('File "/usr/lib/python3/site.py", line 3') == 'File "site.py", line 3'
    for plain in ("1/2 of 3 / 4", "images/s", "2026-01-01 10:00", "http://host/a/b"):
        assert without_paths(plain, roots) == plain


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".serving", "a/b", "a\\b", "a\0", "a\nb", "\ud800", "a\udcff"]
)
def test_names_that_lead_elsewhere(name):
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["a", "a.b", "-x", "läuft gut", "名前", "a b", "%2e%2e", "con"])
def test_names_of_people(name):
    assert is_plain_name(name)
