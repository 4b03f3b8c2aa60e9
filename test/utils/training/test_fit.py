"""The loop: what it saves, when, and how it ends."""

import errno
import signal

import pytest
import torch

from model.ema import EMA
from utils.devices import Precision
from utils.errors import NotSaved, ReadError, Stopped, UserError
from utils.ranks import Ranks
from utils.training.fit import Update, fit, mean_as_pair
from utils.training.optimizer import build_optimizer
from utils.training.prefetch import Prepared
from utils.training.schedule import Schedule
from utils.training.state import TrainState

STEPS = 12


class FakeRecorder:
    """Remembers what it is told, in order."""

    def __init__(self):
        self.saved: list[int] = []
        self.numbers: list[int | None] = []
        self.rows: list[dict] = []
        self.previews: list[int] = []
        self.evaluations: list[int] = []
        self.errors: list[str] = []
        self.ended: list[str] = []
        self.weights: list[torch.Tensor] = []
        self.closed = 0

    def step_done(self):
        pass

    def check_saving(self):
        pass

    def metrics(self, rows):
        self.rows += rows

    def averages(self, state):
        pass

    def save(self, state, epoch, number, wait):
        assert state.is_whole
        self.saved.append(state.step)
        self.numbers.append(number)
        self.weights.append(next(state.network.parameters()).detach().clone())

    def preview(self, state, epoch, resumed):
        self.previews.append(state.step)

    def has_evaluation(self, step):
        return step in self.evaluations

    def evaluation(self, evaluation, epoch):
        assert self.saved[-1] == evaluation  # of the checkpoint that was saved last
        self.evaluations.append(evaluation)

    def error(self, text):
        self.errors.append(text)

    def ended_by(self, error, step):
        self.errors.append(f"{error}; saved at step {step}")

    def close(self):
        self.closed += 1

    def finished(self, step):
        self.ended.append(f"finished {step}")

    def stopped(self, step):
        self.ended.append(f"stopped {step}")


def new_state(scaler_enabled: bool = False) -> TrainState:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    return TrainState(
        network=network,
        ema=EMA(network, 0.9),
        optimizer=build_optimizer("sgd", network, 0.1, 0.0),
        scaler=torch.amp.GradScaler("cpu", enabled=scaler_enabled),
        seed=0,
        kind="diffusion",
        config={},
        args={},
        versions={},
    )


def batches(error_at: int | None = None, error: Exception | None = None):
    for step in range(STEPS):
        if step == error_at:
            raise error
        generator = torch.Generator().manual_seed(step)
        yield Prepared((torch.randn(4, 3, generator=generator),), {})


def squares(network, batch, draws):
    return {"loss": (network(batch[0]) ** 2).mean()}


def names_of(step):
    return ["a.png"]


def run(
    loader, loss_fn=squares, state=None, recorder=None, evaluate=None, complete=None, **schedule
):
    """fit on a tiny network: the recorder, the state, and the error that ended it."""
    state, recorder = state or new_state(), recorder or FakeRecorder()
    options = {"log_interval": 2, "save_steps": 0, "preview_epochs": 2} | schedule
    plan = Schedule(STEPS, 4, lambda step: 0.1, **options)
    update = Update(Precision(torch.float32, torch.device("cpu")), Ranks())
    try:
        fit(
            state.network,
            loader,
            loss_fn,
            state,
            plan,
            recorder,
            update,
            names_of,
            evaluate,
            complete,
        )
    except (Exception, KeyboardInterrupt) as error:
        assert recorder.closed == 1  # whatever happened
        return recorder, state, error
    assert recorder.closed == 1
    return recorder, state, None


def test_what_a_run_saves_and_reports():
    recorder, state, error = run(batches(), numbered_epochs=2)
    assert error is None and state.step == STEPS
    assert recorder.saved == [0, 4, 8, 12]  # at the start too: a full disk is found out
    assert recorder.numbers == [None, None, 2, None]
    assert recorder.previews == [8, 12]
    assert [row["step"] for row in recorder.rows] == list(range(1, STEPS + 1))
    assert recorder.ended == ["finished 12"]


def test_an_epoch_that_has_begun_has_its_own_number():
    schedule = Schedule(10, 4, learning_rate=lambda step: 0.0)
    assert [schedule.epoch_of(step) for step in (1, 4, 5, 8, 10)] == [1, 1, 2, 2, 3]
    assert [schedule.epoch(step) for step in (1, 4, 5, 8, 10)] == [0, 1, 1, 2, 2]


def step_of(network, step):
    """In the place of an evaluation."""
    return step


def test_evaluates_what_it_has_saved():
    recorder, _, error = run(batches(), evaluate=step_of, evaluation_steps=5)
    assert error is None and recorder.evaluations == [5, 10, 12]
    assert recorder.saved == [0, 4, 5, 8, 10, 12]
    assert run(batches(), evaluate=step_of)[0].evaluations == []  # never due


def test_what_completes_a_run_comes_after_a_save_and_before_another():
    told = []

    def complete(state, should_stop):
        assert not should_stop()
        told.append((state.step, list(recorder.saved), list(recorder.evaluations)))
        return True

    recorder = FakeRecorder()
    run(batches(), recorder=recorder, evaluate=step_of, evaluation_steps=5, complete=complete)
    assert told == [(12, [0, 4, 5, 8, 10, 12], [5, 10])]
    assert recorder.saved == [0, 4, 5, 8, 10, 12, 12] and recorder.evaluations == [5, 10, 12]


def test_a_signal_ends_what_completes_a_run():
    def complete(state, should_stop):
        signal.raise_signal(signal.SIGTERM)
        return not should_stop()

    recorder, state, error = run(batches(), evaluate=step_of, complete=complete)
    assert isinstance(error, Stopped) and recorder.saved[-1] == 12 and recorder.saved.count(12) == 1
    assert recorder.ended == ["stopped 12"]
    assert state.step == STEPS


def test_a_resumed_run_evaluates_only_what_is_missing():
    for known, expected in (([5], [5, 10, 12]), ([], [5, 10, 12])):
        state, recorder = new_state(), FakeRecorder()
        state.step = 5
        recorder.evaluations += known
        rest = list(batches())[5:]
        run(iter(rest), state=state, recorder=recorder, evaluate=step_of, evaluation_steps=5)
        assert recorder.evaluations == expected


def test_a_signal_does_not_wait_for_an_evaluation():
    def loss_fn(network, batch, draws):
        out = squares(network, batch, draws)
        loss_fn.calls += 1
        if loss_fn.calls == 5:
            signal.raise_signal(signal.SIGTERM)
        return out

    loss_fn.calls = 0
    recorder, _, error = run(batches(), loss_fn, evaluate=step_of, evaluation_steps=5)
    assert isinstance(error, Stopped) and recorder.saved[-1] == 5 and recorder.evaluations == []


def test_saves_inside_an_epoch():
    assert run(batches(), save_steps=3)[0].saved == [0, 3, 4, 6, 8, 9, 12]


@pytest.mark.parametrize(
    "error",
    [
        ReadError("a.png cannot be read any more"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        torch.OutOfMemoryError("no memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_from_outside_saves_first(error):
    """One file moved away at step 7: what the steps before it gave is saved, then the run ends."""
    recorder, state, raised = run(batches(7, error))
    assert raised is error
    assert recorder.saved == [0, 4, 7] and state.step == 7
    assert [row["step"] for row in recorder.rows] == list(range(1, 8))
    assert len(recorder.errors) == 1 and "saved at step 7" in recorder.errors[0]
    undisturbed = run(batches(), save_steps=7)[0]
    assert torch.equal(recorder.weights[-1], undisturbed.weights[undisturbed.saved.index(7)])


def test_a_bug_saves_nothing():
    recorder, _, raised = run(batches(7, ValueError("a bug")))
    assert isinstance(raised, ValueError) and recorder.saved == [0, 4]


def test_an_error_within_an_update_saves_nothing(monkeypatch):
    """The weights are a step ahead of their average then."""
    state = new_state()
    update = state.ema.update

    def fails(network, step):
        if step == 5:
            raise OSError(errno.EIO, "Input/output error")
        update(network, step)

    monkeypatch.setattr(state.ema, "update", fails)
    recorder, state, raised = run(batches(), state=state)
    assert isinstance(raised, OSError) and recorder.saved == [0, 4]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_a_signal_saves_and_ends(number):
    def loss_fn(network, batch, draws):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(number)
        return squares(network, batch, draws)

    calls: list[int] = []
    before = signal.getsignal(number)
    recorder, state, raised = run(batches(), loss_fn)
    assert isinstance(raised, Stopped) and raised.status == 128 + number
    assert recorder.saved == [0, 4, 6] and recorder.ended == ["stopped 6"]
    assert signal.getsignal(number) == before


def test_a_hangup_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def loss_fn(network, batch, draws):
            signal.raise_signal(signal.SIGHUP)
            return squares(network, batch, draws)

        recorder, state, error = run(batches(), loss_fn)
        assert error is None and state.step == STEPS
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts_at_once():
    def loss_fn(network, batch, draws):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return squares(network, batch, draws)

    recorder, _, error = run(batches(), loss_fn)
    assert isinstance(error, KeyboardInterrupt) and recorder.saved == [0]


def nan_from(step):
    calls = [0]

    def loss_fn(network, batch, draws):
        calls[0] += 1
        out = squares(network, batch, draws)
        return {"loss": out["loss"] * (float("nan") if calls[0] > step else 1)}

    return loss_fn


def test_a_non_finite_loss_ends_the_run_unsaved():
    recorder, _, raised = run(batches(), nan_from(5))
    assert isinstance(raised, UserError) and "step 6: the loss is nan" in str(raised)
    assert "The images: a.png" in str(raised)
    assert recorder.saved == [0, 4] and len(recorder.errors) == 1


def test_non_finite_weights_are_never_saved(monkeypatch):
    """Under fp16 the scaler skips steps whose loss is not finite, so the loss does not tell."""
    state = new_state(scaler_enabled=True)
    monkeypatch.setattr("utils.training.fit.non_finite", lambda *_: None)
    update = state.ema.update

    def spoils(network, step):
        update(network, step)
        if step == 5:
            with torch.no_grad():
                network.weight[0, 0] = float("inf")

    monkeypatch.setattr(state.ema, "update", spoils)
    recorder, _, raised = run(batches(), state=state)
    assert isinstance(raised, UserError) and "step 8: the weights are no longer finite" in str(
        raised
    )
    assert recorder.saved == [0, 4] and all(w.isfinite().all() for w in recorder.weights)


def test_a_last_checkpoint_that_cannot_be_written():
    class Failing(FakeRecorder):
        def finished(self, step):
            raise NotSaved("no room")

    state = new_state()
    update = Update(Precision(torch.float32, torch.device("cpu")), Ranks())
    with pytest.raises(NotSaved):
        fit(
            state.network,
            batches(),
            squares,
            state,
            Schedule(12, 4, lambda s: 0.1),
            Failing(),
            update,
        )


def test_a_mean_becomes_a_sum_and_a_count():
    assert mean_as_pair(torch.tensor(0.5), 8).tolist() == [4.0, 8.0]


@pytest.mark.parametrize("now", ["adamw", "sgd"])
def test_an_optimizer_takes_over_its_own_kind_of_state(now):
    """The settings are this run's; another kind of optimizer starts afresh, and says so."""
    saved = new_state()
    saved.optimizer = build_optimizer("adamw", saved.network, 0.1, 0.5)
    squares(saved.network, (torch.randn(4, 3),), {})["loss"].backward()
    saved.optimizer.step()
    state = new_state()
    state.config = {"training": {}}
    state.optimizer = build_optimizer(now, state.network, 0.01, 0.25)
    saved.config = state.config
    remarks = state.restore(saved.checkpoint(1))
    group = state.optimizer.param_groups[0]
    assert group["weight_decay"] == 0.25
    if now == "adamw":
        assert group["lr"] == 0.1  # until the next step
        assert remarks == [] and len(state.optimizer.state) == 2
    else:
        assert "another optimizer" in remarks[0] and len(state.optimizer.state) == 0


def test_an_error_within_an_update_ends_the_run_with_what_was_saved():
    """The state is of no step then, and is not saved; that the run has ended is said."""
    state = new_state()
    step, count = state.optimizer.step, 0

    def lost(*args, **options):
        nonlocal count
        count += 1
        if count == 7:
            raise RuntimeError("Connection closed by peer, gloo/transport/tcp/pair.cc:1")
        return step(*args, **options)

    state.optimizer.step = lost
    recorder, _, error = run(batches(), state=state)
    assert "gloo" in str(error) and recorder.saved == [0, 4]
    assert recorder.errors == [f"{error}; saved at step 4"]
    assert [row["step"] for row in recorder.rows] == list(range(1, 7))


def test_an_error_before_the_first_save_is_recorded():
    recorder = FakeRecorder()

    def fails(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    recorder.save = fails
    recorder, _, error = run(batches(), recorder=recorder)
    assert recorder.errors == [str(error)]


def test_what_is_still_to_come():
    schedule = Schedule(12, 4, lambda step: 0.1, preview_epochs=2, numbered_epochs=1)
    assert schedule.previews_left(0) == 2  # after epochs 2 and 3, which is the last
    assert schedule.previews_left(8) == 1
    assert schedule.previews_left(12) == 0
    without_previews = Schedule(12, 4, lambda step: 0.1, preview_epochs=0)
    assert without_previews.previews_left(0) == 0
    within_an_epoch = Schedule(15, 10, lambda step: 0.1)  # after steps 10 and 15
    assert [within_an_epoch.previews_left(step) for step in (0, 10, 14, 15)] == [2, 1, 1, 0]
    assert schedule.numbered_checkpoints() == 3
    later = Schedule(12, 4, lambda step: 0.1, numbered_epochs=1, first_numbered_epoch=2)
    assert later.numbered_checkpoints() == 2


@pytest.mark.parametrize("total", [1, 7, 12, 40])
@pytest.mark.parametrize("per_epoch", [1, 4, 7])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_what_is_still_to_come_is_what_comes(total, per_epoch, every):
    schedule = Schedule(
        total,
        per_epoch,
        lambda step: 0.1,
        preview_epochs=every,
        numbered_epochs=every,
        first_numbered_epoch=3,
    )
    for step in range(total + 1):
        later = range(step + 1, total + 1)
        assert schedule.previews_left(step) == sum(map(schedule.preview_is_due, later))
    numbers = {schedule.number(step) for step in range(1, total + 1)} - {None}
    assert schedule.numbered_checkpoints() == len(numbers)


def test_a_run_of_years_is_counted_at_once():
    years = Schedule(10**12, 1, lambda step: 0.1, preview_epochs=1, numbered_epochs=1)
    assert years.previews_left(5) == 10**12 - 5
    assert years.numbered_checkpoints() == 10**12


def test_where_epochs_are_short_not_each_is_saved():
    schedule = Schedule(
        90,
        4,
        lambda step: 0.1,
        save_epochs=5,
        preview_epochs=8,
        numbered_epochs=3,
        first_numbered_epoch=18,
        evaluation_steps=50,
    )
    due = {step for step in range(91) if schedule.save_is_due(step)}
    of_epochs = {0, 20, 40, 60, 80}
    numbered = {72, 84}
    previews = {32, 64, 90}
    evaluations = {50, 90}
    assert due == of_epochs | numbered | previews | evaluations


def test_unknown_names_are_errors():
    from utils.training.learning_rate import learning_rate

    with pytest.raises(ValueError, match="lineer"):
        learning_rate(0, 10, 0.1, "lineer", 0)
    with pytest.raises(ValueError, match="lion"):
        build_optimizer("lion", torch.nn.Linear(1, 1), 0.1, 0.0)


def test_a_killed_worker_is_said_and_saved():
    """torch raises a plain RuntimeError from its signal handler, wherever the loop is."""

    def loss_fn(network, batch, draws):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. ")
        return squares(network, batch, draws)

    calls: list[int] = []
    recorder, _, raised = run(batches(), loss_fn)
    assert isinstance(raised, ReadError) and "a data-loading worker was killed" in str(raised)
    assert recorder.saved == [0, 4, 6]
