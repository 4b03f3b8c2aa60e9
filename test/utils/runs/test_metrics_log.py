"""metrics.csv and TensorBoard: no step twice, no half rows, a failing disk ends no run."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from utils.runs.failures import Failures
from utils.runs.folder import RunFolder
from utils.runs.metrics_log import MetricsLog
from utils.runs.names import METRICS


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path, Failures(tmp_path))
    yield log
    log.close()


def row(step, **values):
    return {"step": step, "epoch": 1, **values}


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
    run.drop_later(3)
    run.write_metrics([{"step": 4, "epoch": 1, "loss": 2.0, "loss_q1": 0.5}])
    run.close()
    text = (tmp_path / "run/metrics.csv").read_text()
    assert text == "step,epoch,loss,loss_q1\n1,1,1.0,\n2,1,1.0,\n3,1,1.0,\n4,1,2.0,0.5\n"


def test_a_header_that_a_kill_cut_off(tmp_path):
    run = RunFolder(tmp_path / "run", resume=False)
    (run.path / "metrics.csv").write_text("step,epo")
    run.start({}, 3)
    run.drop_later(3)
    run.write_metrics([{"step": 4, "epoch": 1, "loss": 2.0}])
    run.close()
    assert (run.path / "metrics.csv").read_text() == "step,epoch,loss\n4,1,2.0\n"


def test_a_path_that_is_not_utf_8_has_no_curves(tmp_path, capsys):
    """Which TensorBoard cannot write; said once, not after each save again."""
    run = RunFolder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff")), resume=False)
    run.start({}, 0)
    for step in (1, 2):
        run.write_metrics([row(step, loss=1.0)])
        run.write_checkpoint({"network": {}}, None, 0)
        assert run.finish_saving()
    run.close()
    assert capsys.readouterr().out.count("TensorBoard could not be written") == 1
    assert (run.path / "metrics.csv").read_text() == "step,epoch,loss\n1,1,1.0\n2,1,1.0\n"


def test_a_new_name_becomes_a_new_column(log):
    log.append([row(1, loss=1.0), row(2, loss=float("nan"))])
    log.append([row(3, loss=0.5, fid=9.0)])
    log.append([row(4, loss=0.25)])
    assert log.file.read_text() == (
        "step,epoch,loss,fid\n1,1,1.0,\n2,1,,\n3,1,0.5,9.0\n4,1,0.25,\n"
    )
    log.cut_back(3)
    assert log.file.read_text().splitlines()[-1] == "3,1,0.5,9.0"


def test_no_rows_are_nothing(log):
    log.append([])
    assert not log.file.exists()


def test_a_row_that_a_full_disk_cut_is_taken_back(log, monkeypatch, capsys):
    log.append([row(1, loss=1.0)])
    whole = log.file.read_text()

    def half(writer, rows):
        writer.writer.writerow(["2", "1"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("csv.DictWriter.writerows", half)
    for step in (2, 3):
        log.append([row(step, loss=1.0)])
    assert log.file.read_text() == whole
    assert capsys.readouterr().out.count("metrics.csv could not be written: No space left") == 1
    monkeypatch.undo()
    log.append([row(4, loss=1.0)])
    assert log.file.read_text() == whole + "4,1,1.0\n"


def test_tensorboard_begins_anew_after_a_failure(log, monkeypatch, capsys):
    """It is tried again after a good save, not before: each try would begin another event file."""
    made = []

    class Board:
        def __init__(self, folder, purge_step):
            made.append(purge_step)

        def add_scalar(self, *_):
            if len(made) == 1:
                raise OSError(5, "Input/output error")

        add_image = add_scalar
        close = add_scalar

    monkeypatch.setattr("utils.runs.metrics_log.SummaryWriter", Board)
    log.cut_back(7)
    for step in (8, 9):
        log.append([row(step, loss=1.0)])
        log.add_image("samples", Image.new("L", (4, 4)), step)
    assert made == [8]
    log.try_again()
    log.append([row(10, loss=1.0)])
    assert made == [8, None]
    assert capsys.readouterr().out.count("TensorBoard could not be written: Input/output") == 1
    assert os.path.exists(log.file)


def test_values_are_added_to_the_last_row(tmp_path):
    log = MetricsLog(tmp_path, Failures(tmp_path))
    log.append([{"step": 1, "epoch": 1, "loss": 0.5}, {"step": 2, "epoch": 1, "loss": 0.25}])
    log.amend({"step": 2, "epoch": 1, "kid": 0.125})
    log.append([{"step": 3, "epoch": 1, "loss": 0.5}])
    log.amend({"step": 3, "epoch": 1, "kid": 0.0625, "other": 1.5})
    assert (tmp_path / METRICS).read_text().splitlines() == [
        "step,epoch,loss,kid,other",
        "1,1,0.5,,",
        "2,1,0.25,0.125,",
        "3,1,0.5,0.0625,1.5",
    ]
    log.amend({"step": 4, "epoch": 2, "kid": 1.0})  # no such row: one of its own
    log.amend({"step": 4, "epoch": 2, "kid": 2.0})  # measured again: replaced
    log.close()
    assert (tmp_path / METRICS).read_text().splitlines()[-1] == "4,2,,2.0,"


def test_a_row_that_cannot_be_added_to_stays(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, Failures(tmp_path))
    log.append([{"step": 1, "epoch": 1, "loss": 0.5, "kid": float("nan")}])
    before = (tmp_path / METRICS).read_bytes()
    original = MetricsLog._overwrite

    def fails_half_way(self, start, text):
        if "0.125" in text:
            original(self, start, text[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, start, text)

    monkeypatch.setattr(MetricsLog, "_overwrite", fails_half_way)
    log.amend({"step": 1, "epoch": 1, "kid": 0.125})
    log.close()
    assert (tmp_path / METRICS).read_bytes() == before
