"""The results folder: one writer, saves in the background, disks that are full or not writable."""

import os
import time

import pytest
import torch

from utils.checkpoint import read_checkpoint, save_checkpoint, snapshot
from utils.errors import UserError
from utils.run_folder import RunFolder, find_checkpoint


def test_twenty_simultaneous_starts_have_one_winner(tmp_path):
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                run = RunFolder(tmp_path / "run", resume=False)
                time.sleep(2)
                run.close()
                os._exit(0)
            except UserError as error:
                os._exit(3 if "being written by another process" in str(error) else 4)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0] + [3] * 19


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

    monkeypatch.setattr("utils.run_folder.save_checkpoint", slow)
    run = RunFolder(tmp_path / "run", resume=False)
    for step in range(3):
        run.write_checkpoint(tensors(step), None, 0)
    assert run.finish_saving()
    assert begun == list(range(6)) and ended == ["ckpt_last.pt", "ema_last.pt"] * 3
    run.close()


def test_a_damaged_last_checkpoint_does_not_replace_the_previous_one(tmp_path, monkeypatch):
    """Resumed from ckpt_prev.pt, and the first save fails when the new file is to take its place."""
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

    monkeypatch.setattr("utils.run_folder.save_checkpoint", full)
    run.write_checkpoint(tensors(2), None, 0)
    run._saving.join()
    assert not run.check_saving() and run.check_saving()  # said once
    assert "No space left" in capsys.readouterr().out
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

    monkeypatch.setattr("utils.run_folder.SummaryWriter", full)
    for step in (1, 2):
        run.log(f"step {step}")
        run.write_metrics([{"step": step, "epoch": 1, "loss": 1.0}])
    out = capsys.readouterr().out
    for name in ("metrics.csv", "log.txt", "TensorBoard"):
        assert out.count(f"{name} could not be written: [Errno 28]") == 1
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


def test_metrics_are_cut_back(tmp_path):
    run = RunFolder(tmp_path / "run", resume=False)
    run.start({}, 0)
    run.write_metrics(
        [{"step": step, "epoch": 1, "loss": 1.0, "loss_q1": float("nan")} for step in range(1, 6)]
    )
    run.close()
    with open(tmp_path / "run/metrics.csv", "a") as file:
        file.write("\0\0\0,1\n\n6,1,0.")  # rows that a power cut and a kill damaged
    run = RunFolder(tmp_path / "run", resume=True)
    run.start({}, 3)
    run.write_metrics([{"step": 4, "epoch": 1, "loss": 2.0, "loss_q1": 0.5}])
    run.close()
    text = (tmp_path / "run/metrics.csv").read_text()
    assert text == "step,epoch,loss,loss_q1\n1,1,1.0,\n2,1,1.0,\n3,1,1.0,\n4,1,2.0,0.5\n"


def test_a_header_that_a_kill_cut_off(tmp_path):
    run = RunFolder(tmp_path / "run", resume=False)
    (run.path / "metrics.csv").write_text("step,epo")
    run.start({}, 3)
    run.write_metrics([{"step": 4, "epoch": 1, "loss": 2.0}])
    run.close()
    assert (run.path / "metrics.csv").read_text() == "step,epoch,loss\n4,1,2.0\n"


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
