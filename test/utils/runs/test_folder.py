"""The results folder: one writer, saves in the background, disks that are full or not writable."""

import errno
import fcntl
import json
import os
import time

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.runs import safeguards
from utils.runs.evaluations import Evaluation, read_evaluations
from utils.runs.files import read_checkpoint, save_checkpoint, snapshot, write_contents
from utils.runs.folder import RunFolder, find_checkpoint, numbered_epochs


def test_twenty_simultaneous_starts_have_one_winner(tmp_path):
    """The winner holds the folder until all others have ended, however slow the machine is."""
    may_end, everyone_ended = os.pipe()
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.close(everyone_ended)
            try:
                run = RunFolder(tmp_path / "run", resume=False)
                os.read(may_end, 1)  # until the test closes the other end
                run.close()
                os._exit(0)
            except UserError as error:
                os._exit(3 if "being written by another process" in str(error) else 4)
        children.append(child)
    codes = []
    deadline = time.monotonic() + 60
    is_open = True
    while len(codes) < 20:
        if is_open and (len(codes) == 19 or time.monotonic() > deadline):
            os.close(everyone_ended)
            is_open = False
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                codes.append(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.close(may_end)
    assert sorted(codes) == [0] + [3] * 19


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run", resume=False)


def tensors(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "format_version": 1,
        "ema": {"w": torch.randn(300, 300, generator=generator)},
        "state": {"step": step},
    }


def test_background_saves_equal_synchronous_ones(tmp_path):
    """100 saves under running steps: what is on disk is what was handed over."""
    run = RunFolder(tmp_path / "run", resume=False)
    live, expected = tensors(0), []
    for step in range(100):
        live["ema"]["w"].mul_(0.9).add_(step)  # a step, while the save before it goes on
        live["state"]["step"] = step
        expected.append(snapshot(live))
        run.write_checkpoint(live, step, 0)
    live["ema"]["w"].zero_()
    assert run.finish_saving()
    for step in range(100):
        found = torch.load(run.path / f"ckpt_{step}.pt", weights_only=True)
        assert torch.equal(found["ema"]["w"], expected[step]["ema"]["w"]) and found["state"] == {
            "step": step
        }
    run.close()


def test_saves_do_not_overlap_and_are_joined(tmp_path, monkeypatch):
    begun, ended = [], []

    def slow(contents, path, keep_previous=False):
        begun.append(len(ended))
        time.sleep(0.05)
        ended.append(path.name)

    monkeypatch.setattr("utils.runs.folder.save_checkpoint", slow)
    run = RunFolder(tmp_path / "run", resume=False)
    for step in range(3):
        run.write_checkpoint(tensors(step), None, 0)
    assert run.finish_saving()
    assert begun == list(range(6)) and ended == ["ckpt_last.pt", "ema_last.pt"] * 3
    run.close()


def test_a_damaged_last_checkpoint_does_not_replace_the_previous_one(tmp_path, monkeypatch):
    """Resumed from ckpt_prev.pt, and the first save fails as the new file is to take its place."""
    run = RunFolder(tmp_path / "run", resume=False)
    for step in (1, 2):
        run.write_checkpoint(tensors(step), None, 0)
        run.finish_saving()
    run.close()
    last, previous = run.path / "ckpt_last.pt", run.path / "ckpt_prev.pt"
    last.write_bytes(last.read_bytes()[:-100])
    run = RunFolder(tmp_path / "run", resume=True)
    assert find_checkpoint(run.path, -1)[1] == previous
    run.start({}, 1, previous)
    replace = os.replace

    def fails(source, target):
        if target == last:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    run.write_checkpoint(tensors(3), None, 0)
    assert not run.finish_saving()
    assert find_checkpoint(run.path, -1)[0]["state"]["step"] == 1
    monkeypatch.undo()
    for step in (4, 5):
        run.write_checkpoint(tensors(step), None, 0)
        assert run.finish_saving()
        assert torch.load(previous, weights_only=True)["state"]["step"] == (1 if step == 4 else 4)
    run.close()


def read_checkpoint_of(run):
    return torch.load(run.path / "ckpt_last.pt", weights_only=True)


def test_a_failed_save_is_reported_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path / "run", resume=False)
    run.write_checkpoint(tensors(1), None, 0)
    assert run.finish_saving()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.runs.folder.save_checkpoint", full)
    run.write_checkpoint(tensors(2), None, 0)
    run._saving.join()
    capsys.readouterr()
    assert not run.check_saving() and not run.check_saving()
    assert capsys.readouterr().out.count("No space left") == 1  # said once
    assert read_checkpoint_of(run)["state"]["step"] == 1
    monkeypatch.undo()
    run.write_checkpoint(tensors(3), None, 0)
    assert run.finish_saving() and read_checkpoint_of(run)["state"]["step"] == 3


def test_other_failures_of_a_save_are_not_swallowed(tmp_path):
    run = RunFolder(tmp_path / "run", resume=False)
    run.write_checkpoint({"bad": lambda: None}, None, 0)
    with pytest.raises(AttributeError):
        run.finish_saving()


def test_a_full_disk_is_said_once_for_each_file(tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path / "run", resume=False)
    run.start({}, 0)
    for name in ("metrics.csv", "log.txt"):
        (run.path / name).symlink_to("/dev/full")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.runs.metrics_log.SummaryWriter", full)
    for step in (1, 2):
        run.log(f"step {step}")
        run.write_metrics([{"step": step, "epoch": 1, "loss": 1.0}])
    out = capsys.readouterr().out
    for name in ("metrics.csv", "log.txt", "TensorBoard"):
        assert out.count(f"{name} could not be written: No space left on device") == 1
        (run.path / name).unlink(missing_ok=True)
    monkeypatch.undo()
    run.write_metrics([{"step": 3, "epoch": 1, "loss": 1.0}])  # there is room again
    assert not list(
        run.path.glob("events.*")
    )  # TensorBoard begins a new file, so it is tried after a good save
    run.write_checkpoint(tensors(3), None, 0)
    assert run.finish_saving()
    run.write_metrics([{"step": 4, "epoch": 1, "loss": 1.0}])
    run.close()
    assert len(list(run.path.glob("events.*"))) == 1
    assert (run.path / "metrics.csv").read_text() == "step,epoch,loss\n3,1,1.0\n4,1,1.0\n"


def test_a_folder_that_is_moved_under_its_run(tmp_path):
    path = tmp_path / "run"
    first = RunFolder(path, resume=False)
    first.write_checkpoint(tensors(1), None, 0)
    assert first.finish_saving()
    path.rename(tmp_path / "moved")
    first.write_checkpoint(tensors(3), None, 0)
    assert (
        not first.finish_saving()
    )  # as on a failing disk: it is said, and the next save may go well
    second = RunFolder(path, resume=False)
    second.write_checkpoint(tensors(2), None, 0)
    assert second.finish_saving()
    first.write_checkpoint(tensors(3), None, 0)
    with pytest.raises(UserError, match="another run has taken the place of this one"):
        first.finish_saving()
    assert read_checkpoint_of(second)["state"]["step"] == 2


def test_400_damages_are_noticed_or_harmless(tmp_path):
    file = tmp_path / "ckpt.pt"
    contents = {
        "format_version": 1,
        "ema": {f"w{i}": torch.randn(40, 40) for i in range(4)},
        "state": {"step": 3},
    }
    save_checkpoint(contents, file)
    good = file.read_bytes()
    noticed = harmless = 0
    places = torch.linspace(0, len(good) - 1, 200).long().tolist()
    for i, place in enumerate(places):
        flipped = bytearray(good)
        flipped[place] ^= 1 << (i % 8)
        for data in (bytes(flipped), good[:place]):
            file.write_bytes(data)
            try:
                found = read_checkpoint(file)
            except UserError:
                noticed += 1
                continue
            assert all(
                torch.equal(found["ema"][key], contents["ema"][key]) for key in contents["ema"]
            )
            assert found["state"] == contents["state"]
            harmless += 1
    assert noticed + harmless == 400 and noticed > 350


# --- What a file system may lack ---

LOCKS_LACKING = ["ENOLCK", "ENOTSUP", "ENOSYS", "EOPNOTSUPP", "EINVAL"]


@pytest.fixture
def unwarned(monkeypatch):
    """As in a process that has not warned yet."""
    monkeypatch.setattr(safeguards, "_warned", set())


@pytest.mark.parametrize("name", LOCKS_LACKING)
def test_a_file_system_without_locks(tmp_path, unwarned, monkeypatch, capsys, name):
    def lockf(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    run = RunFolder(tmp_path / "run", resume=False)
    run.write_checkpoint(tensors(1), None, 0)
    assert run.finish_saving() and read_checkpoint_of(run)["state"]["step"] == 1
    run.close()
    RunFolder(tmp_path / "run", resume=True).close()
    out = capsys.readouterr().out
    assert out.count("warning") == out.count("has no locks") == 1
    with pytest.raises(UserError, match="holds an earlier run"):
        RunFolder(tmp_path / "run", resume=False)


@pytest.mark.parametrize(
    "kept",
    [
        "ema_last.pt",
        "ema_best.pt",
        "ckpt_best.pt",
        "ema_chosen.pt",
        "ckpt_50.pt",
        "averages/step_000000500.pt",
    ],
)
def test_weights_of_any_kind_are_not_written_over(tmp_path, kept):
    file = tmp_path / "run" / kept
    file.parent.mkdir(parents=True)
    save_checkpoint({"format_version": 2, "state": {"step": 500, "epoch": 5}}, file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="holds files of an earlier run: choose another --run_name"):
        RunFolder(tmp_path / "run", resume=False)
    with pytest.raises(UserError, match="--run_name names another run|--start_epoch resumes"):
        find_checkpoint(tmp_path / "run", -1)
    assert file.read_bytes() == before


def test_a_second_run_without_locks_is_noticed_at_the_next_save(tmp_path, unwarned, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    first = RunFolder(tmp_path / "run", resume=False)
    first.write_checkpoint(tensors(1), None, 0)
    assert first.finish_saving()
    with pytest.raises(UserError, match="holds an earlier run"):
        RunFolder(tmp_path / "run", resume=False)
    first.write_checkpoint(tensors(2), None, 0)
    assert first.finish_saving()  # a start that was refused does not disturb the run
    second = RunFolder(tmp_path / "run", resume=True)
    first.write_checkpoint(tensors(2), None, 0)
    assert first.finish_saving()  # nor does one that has not begun yet
    second.start({}, 2)
    first.write_checkpoint(tensors(3), None, 0)
    with pytest.raises(UserError, match="another run has taken the place of this one"):
        first.finish_saving()
    assert read_checkpoint_of(second)["state"]["step"] == 2


def test_the_check_before_a_save_keeps_the_lock(tmp_path):
    """POSIX drops a lock where the process closes any descriptor of the file."""
    run = RunFolder(tmp_path / "run", resume=False)
    run.write_checkpoint(tensors(1), None, 0)
    assert run.finish_saving()
    child = os.fork()
    if child == 0:
        try:
            RunFolder(tmp_path / "run", resume=True)
            os._exit(0)
        except UserError as error:
            os._exit(3 if "being written by another process" in str(error) else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    run.close()


def test_a_file_system_that_renumbers_inodes(tmp_path, monkeypatch):
    """st_ino and st_dev are others at each call: still the same run."""
    run = RunFolder(tmp_path / "run", resume=False)
    monkeypatch.setattr(os.path, "samestat", lambda one, two: False)
    stat, calls = os.stat, []

    def renumbered(*args, **options):
        found = stat(*args, **options)
        calls.append(found)
        return os.stat_result((found.st_mode, 10**6 + len(calls), len(calls), *found[3:]))

    monkeypatch.setattr(os, "stat", renumbered)
    for step in (1, 2):
        run.write_checkpoint(tensors(step), step, 1)
        assert run.finish_saving()
    monkeypatch.undo()
    assert read_checkpoint_of(run)["state"]["step"] == 2
    run.close()


def test_an_old_checkpoint_that_cannot_be_removed(tmp_path, unwarned, monkeypatch, capsys):
    """The new one is safe all the same."""
    run = RunFolder(tmp_path / "run", resume=False)
    unlink = type(run.path).unlink

    def busy(file, missing_ok=False):
        if file.name == "ckpt_1.pt":
            raise OSError(errno.EBUSY, "Device or resource busy")
        unlink(file, missing_ok)

    monkeypatch.setattr(type(run.path), "unlink", busy)
    for epoch in (1, 2, 3):
        run.write_checkpoint(tensors(epoch), epoch, 1)
        assert run.finish_saving()
    assert capsys.readouterr().out.count("ckpt_1.pt could not be removed: Device or") == 1
    assert (run.path / "ckpt_3.pt").exists() and not (run.path / "ckpt_2.pt").exists()
    run.close()


def test_only_our_own_numbered_checkpoints_are_counted(tmp_path):
    for name in ("ckpt_3.pt", "ckpt_12.pt", "ckpt_007.pt", "ckpt_\u00b2.pt", "ckpt_last.pt"):
        (tmp_path / name).touch()
    assert numbered_epochs(tmp_path) == [3, 12]


# --- Errors are told apart by their type ---


def test_a_full_disk_under_torch_save_is_an_oserror(tmp_path):
    """torch.save itself makes a RuntimeError of it."""
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(OSError) as stop:
            write_contents({"a": torch.zeros(10_000)}, full)
    assert stop.value.errno == errno.ENOSPC


def test_a_runtime_error_in_a_save_is_a_bug_and_not_a_full_disk(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    run = RunFolder(tmp_path / "run", resume=False)
    monkeypatch.setattr("utils.runs.folder.save_checkpoint", broken)
    run.write_checkpoint(tensors(1), None, 0)
    with pytest.raises(RuntimeError, match="a bug"):
        run.finish_saving()
    run.close()


def test_a_folder_that_becomes_read_only_is_one_sentence(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run", resume=False)
    (run.path / "config.json").mkdir()
    with pytest.raises(UserError, match="the results folder .*run cannot be written: Is a dir"):
        run.start({}, 0)
    run.close()


# --- Evaluations and the best checkpoint ---


def evaluation(step, level=0.5):
    losses = np.full((8, 1), level)
    numbers = list(range(8))
    return Evaluation(step, [5], losses, losses, {}, "m", numbers, numbers)


def started(path, step=0, resume=False):
    run = RunFolder(path, resume)
    run.start({}, step)
    run.drop_later(step)
    return run


def save(run, step):
    run.write_checkpoint(tensors(step), None, 0)


def best_steps(path):
    names = ("ckpt_best.pt", "ema_best.pt")
    return [read_checkpoint(path / name)["state"]["step"] for name in names]


def test_the_best_checkpoint_stays_while_others_follow(tmp_path):
    run = started(tmp_path / "run")
    for step, is_best in ((1, True), (2, True), (3, False)):
        save(run, step)
        run.write_evaluation(evaluation(step), 1, is_best)
    save(run, 4)
    run.close()
    assert run.best_step == 2 and best_steps(run.path) == [2, 2]
    assert read_checkpoint(run.path / "ckpt_last.pt")["state"]["step"] == 4


@pytest.mark.parametrize("link", [True, False])
def test_without_hard_links_the_best_is_a_copy(tmp_path, monkeypatch, link):
    if not link:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "")))
    run = started(tmp_path / "run")
    save(run, 1)
    run.write_evaluation(evaluation(1), 1, is_best=True)
    save(run, 2)
    run.close()
    assert best_steps(run.path) == [1, 1]


def test_a_failed_save_is_no_best_and_is_not_forgotten(tmp_path, monkeypatch):
    """An evaluation after it must not hide that the last checkpoint was not written."""
    run = started(tmp_path / "run")
    save(run, 1)
    run.write_evaluation(evaluation(1), 1, is_best=True)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.runs.folder.save_checkpoint", full)
    save(run, 2)
    run.write_evaluation(evaluation(2), 1, is_best=True)
    assert run.best_step == 1 and best_steps(run.path) == [1, 1]
    assert not run.finish_saving(is_last=True)
    monkeypatch.undo()
    save(run, 3)
    assert run.finish_saving()
    run.close()


def test_an_evaluation_that_a_kill_cut_short_is_done_again(tmp_path, monkeypatch):
    """Its line is written last, when the best files and the metrics are there."""
    run = started(tmp_path / "run")
    save(run, 1)
    run.finish_saving()

    def killed(*_):
        raise KeyboardInterrupt

    for point in ("append_evaluation", "add_name"):
        with monkeypatch.context() as patch:
            patch.setattr(f"utils.runs.folder.{point}", killed)
            with pytest.raises(KeyboardInterrupt):
                run.write_evaluation(evaluation(1), 1, is_best=True)
        run.close()
        run = started(tmp_path / "run", step=1, resume=True)
        assert run.evaluations == []
    save(run, 1)
    run.write_evaluation(evaluation(1), 1, is_best=True)
    run.close()
    assert best_steps(run.path) == [1, 1] and read_evaluations(run.path)[0][0].step == 1


def test_what_comes_later_stays_until_the_first_save_is_safe(tmp_path):
    """Where a run goes back to an earlier step, and then cannot save."""
    run = started(tmp_path / "run")
    for step in (1, 2, 3):
        run.write_metrics([{"step": step, "epoch": 1, "loss": 1.0}])
        save(run, step)
        run.write_evaluation(evaluation(step), 1, is_best=True)
        run.write_averages(tensors(step), step)
    run.close()
    names = ("metrics.csv", "evaluations.jsonl", "ckpt_best.pt", "ema_best.pt")
    before = [(run.path / name).read_bytes() for name in names]

    again = RunFolder(tmp_path / "run", resume=True)
    again.start({}, 2, run.path / "ckpt_2.pt")
    assert again.best_step is None and [each.step for each in again.evaluations] == [1, 2]
    assert [(run.path / name).read_bytes() for name in names] == before
    assert len(list((run.path / "averages").iterdir())) == 3
    again.drop_later(2)
    again.close()
    assert (run.path / "metrics.csv").read_text().splitlines()[-1].startswith("2,")
    assert [each.step for each in read_evaluations(run.path)[0]] == [1, 2]
    assert not (run.path / "ckpt_best.pt").exists() and not (run.path / "ema_best.pt").exists()
    assert len(list((run.path / "averages").iterdir())) == 2


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_damaged_last_checkpoint_is_none_before(tmp_path, is_damaged):
    """Where the run goes back to the checkpoint of an epoch."""
    run = started(tmp_path / "run")
    for step in (1, 2):
        run.write_checkpoint(tensors(step), step, 0)
        run.finish_saving()
    run.close()
    last = run.path / "ckpt_last.pt"
    if is_damaged:
        last.write_bytes(last.read_bytes()[:-100])
    again = RunFolder(run.path, resume=True)
    again.start({}, 1, run.path / "ckpt_1.pt")
    save(again, 1)
    again.close()
    previous = read_checkpoint(run.path / "ckpt_prev.pt")["state"]["step"]
    assert previous == (1 if is_damaged else 2)


def test_config_is_brought_up_to_date(tmp_path):
    """With what is known after the last step; and not written where nothing has changed."""
    run = RunFolder(tmp_path / "run", resume=False)
    run.start({"config": {"a": 1}}, 0)
    file = run.path / "config.json"
    before = file.stat()
    run.keep_config({"config": {"a": 1}})
    assert file.stat().st_ino == before.st_ino
    run.keep_config({"config": {"a": 1, "b": 2}})
    assert json.loads(file.read_text()) == {"config": {"a": 1, "b": 2}}
    run.close()


def test_what_a_killed_save_has_left_is_removed(tmp_path):
    run = started(tmp_path / "run")
    run.close()
    (run.path / "averages").mkdir()
    left = ["ckpt_last.pt.tmp", "averages/step_2.pt.tmp", "samples/.epoch_0001.png.tmp"]
    for name in left:
        (run.path / name).write_bytes(b"half")
    started(run.path, resume=True).close()
    assert not any((run.path / name).exists() for name in left)


def test_the_best_of_a_branch_that_was_left_is_removed(tmp_path):
    run = started(tmp_path / "run")
    for step in (1, 2, 3):
        save(run, step)
        run.write_evaluation(evaluation(step), 1, is_best=True)
    run.close()
    again = started(tmp_path / "run", step=2, resume=True)
    assert again.best_step is None and not (again.path / "ema_best.pt").exists()
    assert [each.step for each in again.evaluations] == [1, 2]
    again.close()
    save(again, 3)
    again.write_evaluation(evaluation(3), 1, is_best=True)
    again.close()
    same = started(tmp_path / "run", step=3, resume=True)
    assert same.best_step == 3
    same.close()
