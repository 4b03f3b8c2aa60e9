"""What a resumed run says of changes, and checkpoints of earlier versions."""

from types import SimpleNamespace

import pytest

from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.training.resume import (
    changes,
    deciding_facts,
    learning_rate_remark,
    process_differences,
)

CONFIG = {
    "network": {"name": "unet", "in_channels": 1, "num_classes": 2},
    "diffusion": {"noise_steps": 10, "noise_schedule": "linear", "prediction": "eps"},
    "data": {"image_size": [8, 8], "mode": "L", "class_names": ["a", "b"], "fingerprint": "f"},
}
ARGS = {"sample": "plms", "label_drop": 0.0, "lr": 0.1, "epochs": 3, "global_batch": 8}


def test_a_version_1_file_is_read():
    contents = {"format_version": 1, "config": CONFIG, "args": ARGS, "state": {"seed": 5}}
    checkpoint = Checkpoint.parse(contents, "old.pt")
    assert checkpoint.sampler == "plms" and not checkpoint.guidance_was_trained
    assert checkpoint.config["training"]["lr"] == 0.1
    assert checkpoint.config["length"] == {"epochs": 3}
    assert checkpoint.channels == 1 and checkpoint.image_size == (8, 8)
    facts = deciding_facts(checkpoint.config, 5)
    assert facts["global_batch"] == 8 and facts["seed"] == 5 and facts["the images"] == "f"


def test_a_file_of_version_2_decides_nothing_by_its_args():
    config = {
        **CONFIG,
        "sampling": {"sampler": "ddim", "guidance": True},
        "training": {"lr": 0.2},
    }
    contents = {"format_version": 2, "config": config, "args": ARGS}
    checkpoint = Checkpoint.parse(contents, "new.pt")
    assert checkpoint.sampler == "ddim" and checkpoint.guidance_was_trained
    again = Checkpoint.parse(checkpoint.to_dict(), "again.pt")
    assert again.config == checkpoint.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("sampling"), "config.sampling is missing"),
        (
            lambda c: c["data"].update(mode="CMYK"),
            "config.data.mode is 'CMYK', but must be one",
        ),
        (lambda c: c["data"].update(image_size=[8]), "config.data.image_size is"),
        (lambda c: c["data"].update(class_names=["a"]), "1 class names for 2 classes"),
        (lambda c: c["network"].update(in_channels=3), "takes 3 channels"),
        (lambda c: c["diffusion"].pop("prediction"), "config.diffusion.prediction is missing"),
        (lambda c: c.update(network=7), "config.network is 7, but must be a dict"),
    ],
)
def test_errors_name_the_field(change, message):
    config = {
        "network": dict(CONFIG["network"]),
        "diffusion": dict(CONFIG["diffusion"]),
        "data": dict(CONFIG["data"]),
        "sampling": {"sampler": "ddim", "guidance": True},
        "training": {},
    }
    change(config)
    with pytest.raises(UserError, match=f"x.pt is not usable: .*{message}"):
        Checkpoint.parse({"format_version": 2, "config": config}, "x.pt")


def test_an_option_that_is_newer_than_the_checkpoint():
    """What its run did is known, and another value is a change."""
    training = {"lr": 0.2}
    sampling = {"sampler": "ddim", "guidance": True}
    config = {**CONFIG, "sampling": sampling, "training": training}
    contents = {"format_version": 2, "config": config, "args": ARGS}
    checkpoint = Checkpoint.parse({**contents, "state": {"seed": 5}}, "old.pt")

    def changed(**newer):
        state = SimpleNamespace(config={**CONFIG, "training": training | newer}, seed=5)
        return changes(checkpoint, state)

    assert changed(time_steps="uniform", loss_weight="uniform", balance=False) == []
    assert changed(time_steps="weighted", loss_weight="min_snr") == [
        "time_steps uniform before, weighted now",
        "loss_weight uniform before, min_snr now",
    ]


def test_class_names_compare_in_nfc():
    one, two = (
        {**CONFIG, "training": {}, "data": {**CONFIG["data"], "class_names": [name]}}
        for name in ("\u00e9t\u00e9", "e\u0301te\u0301")
    )
    assert deciding_facts(one, 0) == deciding_facts(two, 0)


def test_another_length_is_said_with_both_rates():
    def rate(step, total):
        return 1 - step / total

    remark = learning_rate_remark(12, 24, 6, rate)
    assert "24 steps long, previously 12" in remark and "0.75 instead of 0.5" in remark
    assert learning_rate_remark(12, 12, 6, rate) is None
    assert learning_rate_remark(None, 12, 6, rate) is None
    assert learning_rate_remark(12, 24, 6, lambda step, total: 0.1) is None  # constant
    assert learning_rate_remark(12, 24, 12, lambda step, total: 0.1) is None
    assert "0.5 instead of 0" in learning_rate_remark(12, 24, 12, rate)


def test_another_process_is_said():
    theirs = {"prediction": "v", "noise_steps": 1000}
    assert process_differences(theirs, dict(theirs)) == []
    (remark,) = process_differences(theirs, {"prediction": "eps", "noise_steps": 1000})
    assert "{'prediction': 'v'}, this run uses {'prediction': 'eps'}" in remark
