"""Decoded once per machine, whatever happens to the processes, the disk and the files."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from utils.data import cache as cache_module
from utils.data import cache_folder, load_image_set, locks, reading
from utils.errors import UserError

SIZE = (8, 8)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decodes(monkeypatch):
    """The files that are decoded, in a list."""
    seen = []
    real = reading.decode

    def decode(path, size, mode="RGB"):
        seen.append(os.path.basename(path))
        return real(path, size, mode)

    monkeypatch.setattr(reading, "decode", decode)
    return seen


def load(images, folder, **options):
    return load_image_set(images, SIZE, True, cache_folder=folder, **options)


def same(one, other):
    return all(torch.equal(one[i][0], other[i][0]) for i in range(len(one)))


# --- What is kept ---


def test_the_second_run_decodes_nothing(images, folder, decodes):
    first = load(images, folder)
    assert len(decodes) == 13
    second = load(images, folder)
    assert len(decodes) == 13 and same(first, second)
    assert first.fingerprint() == second.fingerprint() and first.left_out == second.left_out
    assert load(images, folder, cache="none").fingerprint() == first.fingerprint()


@pytest.mark.parametrize("cache", ["auto", "disk", "ram", "none"])
def test_each_choice_gives_the_same_pixels(images, folder, cache):
    (images / "bag" / "cut.png").write_bytes(b"\x89PNG")
    for colour_in in ("bag/000.png", "trouser/zzz.png", None):  # coloured at once, late, not at all
        for file in images.rglob("*.png"):
            if file.name != "cut.png":
                Image.open(file).convert("L").save(file)
        (images / "trouser" / "zzz.png").unlink(missing_ok=True)
        if colour_in:
            Image.new("RGB", SIZE, (200, 10, 10)).save(images / colour_in)
        found = load(images, folder, cache=cache)
        again = load(images, folder, cache="none")
        assert same(found, again) and found.fingerprint() == again.fingerprint()
        assert found.channels == (3 if colour_in else 1)
        assert list(found.left_out) == ["bag/cut.png"]


def test_a_fingerprint_of_earlier_versions(images, folder):
    """crc32 of the (H,W,3) pixels of each image, as checkpoints made before hold it."""
    import hashlib
    import zlib

    found = load(images, folder)
    sums = []
    for name in found.files:
        grey = np.asarray(Image.open(images / name).resize(SIZE, Image.Resampling.BICUBIC))
        sums.append(zlib.crc32(np.stack([grey] * 3, -1).tobytes()))
    facts = (["bag", "boot", "trouser"], SIZE, "L", [0] * 5 + [1] * 4 + [2] * 4, sums)
    assert found.fingerprint() == hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def test_modes(images, folder):
    Image.new("RGB", SIZE, (200, 10, 100)).save(images / "bag" / "000.png")
    luma = load(images, folder, mode="L")
    assert luma.channels == 1 and abs(int(luma[0][0][0, 0, 0]) - 77) <= 1  # 601: .299 .587 .114
    colour = load(images, folder, mode="RGB")
    assert colour.channels == 3 and colour[0][0][:, 0, 0].tolist() == [200, 10, 100]
    (images / "bag" / "000.png").unlink()
    grey, wide = load(images, folder), load(images, folder, mode="RGB")
    assert grey.channels == 1 and wide.channels == 3
    assert torch.equal(wide[0][0], grey[0][0].expand(3, *SIZE))
    assert load(images, folder, mode="L").fingerprint() == grey.fingerprint()
    with pytest.raises(UserError, match="--mode CMYK is unknown; choose one of auto, L, RGB"):
        load(images, folder, mode="CMYK")


def test_another_listing_size_or_decoder_is_another_set(images, folder, decodes, monkeypatch):
    load(images, folder)
    os.utime(images / "bag" / "000.png", ns=(0, 1))
    load(images, folder)
    assert len(decodes) == 26
    load_image_set(images, (8, 12), True, cache_folder=folder)
    assert len(decodes) == 39
    monkeypatch.setattr(cache_module, "DECODER_VERSION", "another")
    load(images, folder)
    assert len(decodes) == 52


@pytest.mark.parametrize("damage", ["cut off", "longer", "facts", "header", "empty", "pixels"])
def test_a_damaged_cache_file_is_noticed(images, folder, decodes, damage):
    first = load(images, folder)
    (file,) = folder.glob("*.images")
    data = bytearray(file.read_bytes())
    if damage == "cut off":
        data = data[:-10]
    elif damage == "longer":
        data += b"x"
    elif damage == "facts":
        data[-100] ^= 1
    elif damage == "header":
        data[20] ^= 1
    elif damage == "empty":
        data = b""
    elif damage == "pixels":
        data[4096 + 70] ^= 1
    file.unlink()
    file.write_bytes(data)
    assert same(load(images, folder), first)
    assert len(decodes) == (13 if damage == "pixels" else 26)


def test_a_file_that_becomes_readable_is_read(images, folder, monkeypatch):
    real = reading.decode

    def decode(path, size, mode="RGB"):
        if path.endswith("boot/000.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, size, mode)

    monkeypatch.setattr(reading, "decode", decode)
    found = load(images, folder)
    assert found.left_out == {"boot/000.png": "[Errno 13] Permission denied: '000.png'"}
    monkeypatch.setattr(reading, "decode", real)
    assert len(load(images, folder)) == 13


def test_a_file_that_stays_unreadable_does_not_cost_the_cache(images, folder, monkeypatch, decodes):
    """Whatever number the error has: Pillow gives a damaged file EINVAL, a bad sector is EIO."""
    short = images / "boot" / "short.pcx"
    picture = Image.new("P", (8, 8))
    picture.putpalette(range(256))
    picture.save(short)
    short.write_bytes(short.read_bytes()[:200])
    assert "Errno" in load(images, folder).left_out["boot/short.pcx"]
    decodes.clear()
    found = load(images, folder)
    assert len(found) == 13 and "Errno" in found.left_out["boot/short.pcx"]
    assert decodes == ["short.pcx"]


# --- The folder ---


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder.default_cache_folder() == tmp_path / "iddm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder.default_cache_folder() == tmp_path / ".cache" / "iddm"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder.default_cache_folder() == tmp_path / "Library" / "Caches" / "iddm"


def test_a_user_without_a_home_has_no_cache(images, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_folder.os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    found = load_image_set(images, SIZE, True)
    assert isinstance(found.pixels, np.ndarray) and "no home folder" in found.remarks[0]
    assert not (tmp_path / "~").exists()


def test_the_cache_is_bounded_and_spares_what_is_in_use(images, folder, monkeypatch):
    oldest = load_image_set(images, (8, 8), True, cache_folder=folder)  # stays open
    load_image_set(images, (8, 9), True, cache_folder=folder)
    load_image_set(images, (8, 10), True, cache_folder=folder)
    files = sorted(folder.glob("*.images"), key=lambda file: file.stat().st_mtime_ns)
    for age, file in enumerate(files):
        os.utime(file, (age, age))
    limit = sum(file.stat().st_size for file in files) + 13 * 3 * 64
    monkeypatch.setattr(cache_folder, "LARGEST_CACHE", limit)
    load_image_set(images, (8, 11), True, cache_folder=folder)
    assert files[0].exists() and not files[1].exists() and files[2].exists()
    assert oldest[0][0].shape == (1, 8, 8)


@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_what_would_not_fit_anyway_removes_nothing(images, folder, monkeypatch, cache):
    for width in (8, 9, 10):
        load_image_set(images, (8, width), True, cache_folder=folder)
    usage = cache_folder.shutil.disk_usage("/")
    free = cache_folder.LEFT_FREE  # with what is there, one byte less than the set needs
    kept = sum(file.stat().st_size for file in folder.glob("*.images"))
    short = usage._replace(free=free + 13 * 3 * 8 * 11 - kept - 1)
    monkeypatch.setattr(cache_folder.shutil, "disk_usage", lambda _: short)
    if cache == "disk":
        with pytest.raises(UserError, match="the set needs up to"):
            load_image_set(images, (8, 11), True, cache_folder=folder, cache=cache)
    else:
        load_image_set(images, (8, 11), True, cache_folder=folder, cache=cache)
    assert len(list(folder.glob("*.images"))) == 3


def test_a_set_above_the_bound_that_is_asked_for_removes_none(images, folder, monkeypatch):
    load_image_set(images, (8, 9), True, cache_folder=folder)
    monkeypatch.setattr(cache_folder, "LARGEST_CACHE", 1)
    load_image_set(images, (8, 11), True, cache_folder=folder, cache="disk")
    assert len(list(folder.glob("*.images"))) == 2


def test_a_set_that_is_removed_is_not_mapped(images, folder, monkeypatch):
    """Between the opening of the file and its lock."""
    load(images, folder)
    (file,) = folder.glob("*.images")
    real = locks.fcntl.flock

    def flock(number, kind):
        file.unlink(missing_ok=True)
        real(number, kind)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(FileNotFoundError):
        locks.lock_for_reading(file)


def test_a_lock_that_is_held_for_a_moment_is_waited_for(folder, monkeypatch):
    folder.mkdir()
    (folder / "a").write_bytes(b"")
    other = locks.FileLock(folder / "a")
    assert other.try_acquire()
    monkeypatch.setattr(locks.time, "sleep", lambda _: other.close())
    mine = locks.lock_for_reading(folder / "a")
    third = locks.FileLock(folder / "a")
    assert not third.try_acquire()
    mine.close()
    third.close()


@pytest.mark.parametrize("why", ["no room", "not a folder", "write fails", "too large"])
def test_without_a_usable_folder(images, folder, monkeypatch, why):
    if why == "no room":
        usage = cache_folder.shutil.disk_usage("/")._replace(free=10)
        monkeypatch.setattr(cache_folder.shutil, "disk_usage", lambda _: usage)
    elif why == "not a folder":
        folder.write_text("a file")
    elif why == "write fails":

        def write(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(cache_module.DiskStore, "write", write)
    elif why == "too large":
        monkeypatch.setattr(cache_folder, "LARGEST_CACHE", 1)
    found = load(images, folder)
    assert isinstance(found.pixels, np.ndarray) and len(found) == 13
    assert len(found.remarks) == 1 and "not kept on the disk" in found.remarks[0]
    assert not list(folder.glob("*.part")) if folder.is_dir() else True
    monkeypatch.setattr(cache_module, "LARGEST_IN_RAM", 1)
    found = load(images, folder)
    assert found.pixels is None and "decoded again at each use" in found.remarks[0]
    if why != "too large":
        with pytest.raises(UserError, match="--cache disk: the folder .* cannot be used, .*; pass"):
            load(images, folder, cache="disk")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_file_systems_without_locks(images, folder, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    found = load(images, folder)
    assert len(found) == 13 and len(found.remarks) == 1 and "without locks" in found.remarks[0]
    assert not isinstance(found.pixels, np.ndarray) and len(list(folder.glob("*.images"))) == 1
    assert load(images, folder).remarks == []


# --- Several processes ---

LOAD = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from utils.data import load_image_set, reading
real, log = reading.decode, os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def decode(path, size, mode="RGB"):
    os.write(log, b"%d\\n" % os.getpid())
    time.sleep(float(sys.argv[4]))
    return real(path, size, mode)
reading.decode = decode
found = load_image_set(Path(sys.argv[1]), (8, 8), True, cache_folder=Path(sys.argv[2]))
print(found.fingerprint(), len(found))
"""


def start(images, folder, log, pause):
    command = [sys.executable, "-c", LOAD, str(images), str(folder), str(log), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_decode_once(images, folder, tmp_path):
    log = tmp_path / "log"
    running = [start(images, folder, log, 0.1) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert said[0] == said[1] and said[0].endswith(" 13\n")
    assert len(log.read_text().splitlines()) == 13 and len(set(log.read_text().split())) == 1


def test_a_killed_builder_is_replaced(images, folder, tmp_path):
    log = tmp_path / "log"
    builder = start(images, folder, log, 30)
    end = time.monotonic() + 30
    while not log.exists() or not log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    waiting = start(images, folder, log, 0)
    time.sleep(1.5)
    assert waiting.poll() is None  # it waits for as long as the builder lives
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    said, _ = waiting.communicate(timeout=60)
    assert said.endswith(" 13\n")
    assert len(list(folder.glob("*.images"))) == 1 and not list(folder.glob("*.part"))


def test_those_who_wait_say_so(images, folder, capsys, monkeypatch):
    monkeypatch.setattr(cache_module, "WAITING_SHOWN_AFTER", 0.0)
    folder.mkdir()
    load(images, folder)
    (file,) = folder.glob("*.images")
    file.unlink()
    holder = locks.FileLock(file.with_suffix(".lock"))
    assert holder.try_acquire()
    holder.write_note("7")
    threading.Timer(0.5, holder.close).start()
    assert len(load(images, folder)) == 13
    assert "waiting: another process is reading the images of" in capsys.readouterr().err


# --- Bounded memory ---


def test_decodes_do_not_run_far_ahead_of_their_reader():
    begun = []

    def work(item):
        begun.append(item)
        return item * 2

    results = reading.ahead(work, range(1000), threads=2)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(begun) <= 2 * reading.AHEAD_PER_THREAD + 1
    assert list(results) == [2 * item for item in range(1, 1000)]
    results = reading.ahead(work, range(1000), threads=2)
    next(results)
    results.close()  # an error of the reader leaves nothing running
    assert len(begun) < 1100


def test_files_that_change_places_are_read_again(tmp_path):
    """Of equal size and time, as archives with fixed times make them."""
    for name, value in (("a", 10), ("b", 100)):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", SIZE, value).save(tmp_path / "set" / name / "0.bmp")
        os.utime(tmp_path / "set" / name / "0.bmp", (1_000_000, 1_000_000))

    def values():
        found = load_image_set(tmp_path / "set", SIZE, True, cache="disk", cache_folder=tmp_path)
        return [int(found[i][0][0, 0, 0]) for i in range(2)]

    assert values() == [10, 100] == values()
    one, two = tmp_path / "set/a/0.bmp", tmp_path / "set/b/0.bmp"
    one.rename(tmp_path / "aside.bmp")
    two.rename(one)
    (tmp_path / "aside.bmp").rename(two)
    assert values() == [100, 10]
