"""How long a step takes is measured without leaving a trace."""

import pytest
import torch

from model.ema import EMA
from utils.devices import Precision
from utils.ranks import Ranks
from utils.training import timing
from utils.training.fit import Update
from utils.training.optimizer import build_optimizer
from utils.training.state import TrainState

CPU = Precision(torch.float32, torch.device("cpu"))


def new_state(optimizer="adamw"):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.BatchNorm1d(16))
    return TrainState(
        network=network,
        ema=EMA(network),
        optimizer=build_optimizer(optimizer, network, 0.1, 0.1),
        scaler=CPU.scaler(),
        seed=0,
        kind="diffusion",
        config={},
        args={},
        versions={},
    )


def squares(network, batch, draws):
    return {"loss": network(batch[0]).square().mean()}


def timed(state, loss_fn=squares):
    batch = (torch.randn(4, 20, generator=torch.Generator().manual_seed(0)),)
    return timing.seconds_of_step(
        state.network, loss_fn, lambda *_: {}, state, batch, Update(CPU, Ranks(), grad_clip=1.0)
    )


def all_numbers(state):
    parts = state.snapshot()
    values = [*parts["network"].values(), *parts["ema"].values()]
    for entry in parts["optimizer"]["state"].values():
        values += entry.values()
    return values


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_the_state_is_put_back_to_the_bit(optimizer, steps_before, monkeypatch):
    """Weights, buffers, average, moments and step; the next step is as if nothing had been."""
    monkeypatch.setattr(timing, "ENOUGH_TIME", 0.0)
    states = [new_state(optimizer) for _ in range(2)]
    for state in states:
        for _ in range(steps_before):
            one_step(state)
    before = all_numbers(states[0])
    assert timed(states[0]) > 0
    after = all_numbers(states[0])
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert states[0].step == steps_before
    assert all(parameter.grad is None for parameter in states[0].network.parameters())
    for state in states:
        one_step(state)
    pairs = zip(all_numbers(states[0]), all_numbers(states[1]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def one_step(state):
    squares(state.network, (torch.ones(4, 20) * torch.arange(4)[:, None],), {})["loss"].backward()
    for group in state.optimizer.param_groups:
        group["lr"] = 0.1
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.network, state.step)
    state.step += 1


def test_it_is_put_back_after_an_error_too():
    state = new_state()
    before = all_numbers(state)
    calls = []

    def failing(network, batch, draws):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("too little memory")
        return squares(network, batch, draws)

    with pytest.raises(RuntimeError, match="memory"):
        timed(state, failing)
    assert all(torch.equal(a, b) for a, b in zip(before, all_numbers(state), strict=True))


def test_the_first_step_is_not_counted_however_long_it_takes(monkeypatch):
    """As one does that compiles the network."""
    clock = [0.0]
    calls = []

    def compiled_at_first(network, batch, draws):
        clock[0] += 0.5 if calls else 90.0
        calls.append(1)
        return squares(network, batch, draws)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert timed(new_state(), compiled_at_first) == timing.SLOW_DOWN * 0.5
    assert len(calls) >= timing.WARM_UP_STEPS + timing.FEWEST_STEPS


def test_of_very_slow_steps_two_are_taken(monkeypatch):
    clock = [0.0]

    def slow(network, batch, draws):
        clock[0] += 30.0
        return squares(network, batch, draws)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert timed(new_state(), slow) == timing.SLOW_DOWN * 30.0
    assert clock[0] == 60.0


def test_slow_steps_are_taken_once(monkeypatch):
    calls = []

    def counted(network, batch, draws):
        calls.append(1)
        return squares(network, batch, draws)

    monkeypatch.setattr(timing, "ENOUGH_TIME", 0.0)
    timed(new_state(), counted)
    assert len(calls) == timing.WARM_UP_STEPS + timing.FEWEST_STEPS
    calls.clear()
    monkeypatch.setattr(timing, "LONGEST_TIME", 0.0)
    timed(new_state(), counted)
    assert len(calls) == 2, "the first step is never what is taken for the time of one"
