"""What is compared: the same network twice, and whichever peers are installed."""

import ast
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from utils.benchmarks.case import Case
from utils.benchmarks.comparison import check_networks
from utils.benchmarks.contenders import (
    ENTRIES,
    build_contender,
    is_installed,
    left_out_lines,
)
from utils.benchmarks.diffusers_peer import build_network, largest_difference
from utils.devices import Precision
from utils.errors import UserError

CASE = Case(preset="tiny", side=16, channels=3, batch_size=2, sample_steps=3)
FULL = Precision(torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("side", [8, 28, 64])
def test_both_networks_give_the_same_output(side):
    assert check_networks(Case("tiny", side, 1, 1, 2)) < 1e-5


@pytest.mark.parametrize("preset", ["small", "medium", "base"])
def test_every_preset_has_a_network_of_diffusers(preset):
    assert check_networks(Case(preset, 8, 3, 1, 2)) < 1e-5


def test_the_output_depends_on_the_weights():
    x, t = CASE.noisy(torch.device("cpu"))
    with torch.no_grad():
        output = CASE.build_network(CASE.random_weights())(x, t)
    assert output.abs().mean() > 0.1


@pytest.mark.parametrize(
    "name",
    ["conv_in.weight", "up_blocks.0.resnets.1.norm2.bias", "mid_block.attentions.0.to_q.weight"],
)
def test_a_changed_weight_is_noticed(name):
    weights = CASE.random_weights()
    theirs = build_network(CASE, weights)
    changed = theirs.state_dict()
    changed[name] = changed[name] * 1.2 + 0.01
    theirs.load_state_dict(changed)
    with pytest.raises(UserError, match="not the same network"):
        largest_difference(CASE.build_network(weights), theirs, CASE)


def test_a_missing_peer_is_named(monkeypatch):
    installed = [entry.pip_name for entry in ENTRIES.values() if is_installed(entry)]
    assert "diffusers" in installed and "" in installed
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as where it is not installed
    assert not is_installed(ENTRIES["diffusers"]) and is_installed(ENTRIES["ours_muon"])
    (line,) = [line for line in left_out_lines() if line.startswith("diffusers ")]
    assert "pip install diffusers" in line
    assert check_networks(CASE) is None


@pytest.mark.parametrize("key", [key for key, entry in ENTRIES.items() if is_installed(entry)])
def test_a_contender_trains_calls_and_samples(key):
    weights = CASE.random_weights()
    contender = build_contender(key, CASE, FULL, weights)
    before = {name: value.clone() for name, value in contender.network.state_dict().items()}
    called = []
    contender.network.register_forward_hook(lambda *_: called.append(torch.is_grad_enabled()))

    contender.call()
    images = contender.sample()
    assert called == [False] * (1 + CASE.sample_steps)
    assert images.shape == CASE.shape and images.isfinite().all()
    assert all(torch.equal(before[name], v) for name, v in contender.network.state_dict().items())

    contender.train()
    assert called[1 + CASE.sample_steps :] == [True]
    after = contender.network.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any((after[name] - value).abs().max() > 0 for name, value in before.items())


def test_start_up_pays_for_all_that_training_imports():
    """What tools/train.py imports in its functions is imported by our contenders too."""
    tree = ast.parse((ROOT / "tools" / "train.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    nodes = [node for function in functions for node in ast.walk(function)]
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert len(imported) > 10
    script = "from utils.benchmarks.contenders import import_contender\n"
    script += "import_contender('ours_muon')\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    of_latents = {"utils.training.latent_inputs", "utils.training.latent_statistics"}
    assert imported - of_latents <= set(done.stdout.split())


def test_the_contenders_begin_with_the_same_weights():
    weights = CASE.random_weights()
    ours = build_contender("ours_adamw", CASE, FULL, weights)
    theirs = build_contender("diffusers", CASE, FULL, weights)
    assert largest_difference(ours.network, theirs.network, CASE) < 1e-5
    assert ours.operations == theirs.operations > 0
