"""The options of tools/train.py as a form."""

import json
from dataclasses import replace

import pytest
from helpers import DEMO
from training_helpers import real_form, train_script

from utils.options import plain_values
from utils.options.table import options_of
from utils.options.types import PathType
from utils.serving.data_folders import DataFolders
from utils.serving.presets import PRESETS
from utils.serving.refusal import Refusal
from utils.serving.training_form import check_run_name


def parsed(options: dict, tmp_path) -> dict:
    """The values that the script gets."""
    form = real_form()
    arguments = form.arguments("a run", DEMO, tmp_path, form.texts(options), "--resume=True")
    return vars(train_script().build_parser().parse_args(arguments))


def test_the_script_gets_what_was_chosen(tmp_path):
    chosen = {
        "image_size": [64, 96],
        "channel_mult": [1, 2],
        "attention_levels": "",
        "lr": 1e-5,
        "conditional": False,
        "epochs": 7,
        "sample": "plms",
        "eval_interval_epochs": None,
        "val_fraction": 0.25,
    }
    found = parsed(chosen, tmp_path)
    expected = {**chosen, "image_size": (64, 96), "channel_mult": (1, 2), "attention_levels": ()}
    assert {name: found[name] for name in chosen} == expected
    place = (found["run_name"], found["dataset_path"], found["result_path"], found["resume"])
    assert place == ("a run", DEMO, tmp_path, True)


def test_all_that_is_offered_keeps_its_default(tmp_path):
    defaults = vars(train_script().build_parser().parse_args([]))
    found = parsed({}, tmp_path)
    names = [option.name for option in real_form().offered()]
    assert len(names) > 50
    assert {name: found[name] for name in names} == {name: defaults[name] for name in names}


def test_a_data_folder_stands_for_a_path(tmp_path):
    for name in ("cells", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    assert "joint_masks" not in {option.name for option in real_form().offered()}
    form = replace(real_form(), data=DataFolders(tmp_path / "data"))
    shown = {option.name: option for group in form.groups() for option in group.options}
    assert shown["condition_path"].kind == "folder" and shown["condition_path"].editable
    texts = form.texts({"condition_path": "masks", "joint_masks": True})
    arguments = form.arguments("a", tmp_path / "data/cells", tmp_path, texts)
    assert f"--condition_path={tmp_path / 'data/masks'}" in arguments
    form.check_together(arguments)
    for name in ("other", "../data/masks", str(tmp_path / "data/masks"), ".hidden"):
        texts = form.texts({"condition_path": name})
        with pytest.raises(Refusal, match="no data folder") as refused:
            form.arguments("a", tmp_path / "data/cells", tmp_path, texts)
        assert refused.value.param == "options.condition_path"
    recorded = {"condition_path": str(tmp_path / "data/masks"), "condition_drop": 0.2}
    assert form.recorded_texts(recorded) == {"condition_path": "masks", "condition_drop": "0.2"}
    assert form.recorded_texts({"condition_path": "/elsewhere/masks"}) == {}


def test_no_path_is_offered():
    table = options_of(train_script().OPTIONS)
    paths = {option.name for option in table if isinstance(option.type, PathType)}
    names = {option.name for option in real_form().offered()}
    assert len(paths) >= 4 and not names & paths
    assert not names & {"resume", "plan", "run_name", "start_epoch", "pretrain"}
    shown = {option.name: option for group in real_form().groups() for option in group.options}
    assert not shown["run_name"].editable and not shown["dataset"].editable
    assert "/" not in str(shown["dataset"].default)
    assert (shown["lr"].kind, shown["lr"].low, shown["lr"].open_low) == ("float", 0, True)
    assert (shown["seed"].high, shown["epochs"].high) == (2**32 - 1, 10**9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("result_path", "/tmp"),
        ("dataset_path", "/etc"),
        ("resume", True),
        ("nothing", 1),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", "1 --result_path /tmp"),
        ("lr", "nan"),
        ("lr", float("inf")),
        ("image_size", [3, 5000]),
        ("image_size", [8, 8, 8]),
        ("channel_mult", "1;2"),
        ("channel_mult", ",".join(["1"] * 1000)),
        ("network", "../unet"),
        ("network", "unet\0"),
        ("network", "\ud800"),
        ("conditional", "perhaps"),
    ],
)
def test_what_the_script_would_not_take(name, value):
    with pytest.raises(Refusal) as refused:
        real_form().texts({name: value})
    assert refused.value.status == 422 and refused.value.message.encode()


def test_options_that_do_not_fit_together(tmp_path):
    form = real_form()
    arguments = form.arguments("a", DEMO, tmp_path, form.texts({"keep": 3}))
    with pytest.raises(Refusal, match="--keep 3 does nothing without --save_model_interval"):
        form.check_together(arguments)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_are_options(preset, tmp_path):
    form = real_form()
    texts = form.texts(preset.values)
    form.check_together(form.arguments("a", DEMO, tmp_path, texts))
    defaults = vars(train_script().build_parser().parse_args([]))
    found = parsed(preset.values, tmp_path)
    assert any(found[name] != defaults[name] for name in preset.values)
    for name, value in preset.values.items():
        if not isinstance(value, str):
            assert found[name] == value


def test_a_run_is_resumed_with_the_options_of_its_record(tmp_path):
    chosen = {"image_size": "8", "channel_mult": "1,2", "lr": 1e-4, "flip": True, "epochs": 3}
    record = json.loads(json.dumps(plain_values(train_namespace(chosen, tmp_path))))
    record |= {"global_batch": 4, "flip": "perhaps"}  # other entries, and damaged ones
    texts = real_form().recorded_texts(record)
    assert texts == {"image_size": "8,8", "channel_mult": "1,2", "lr": "0.0001", "epochs": "3"}


def test_a_run_of_minutes_is_resumed_without_epochs():
    texts = real_form().recorded_texts({"minutes": 8.0, "epochs": 30})
    assert texts == {"minutes": "8.0"}


def test_a_run_with_a_decay_is_resumed_without_a_length_of_its_average(tmp_path):
    form = real_form()
    texts = form.recorded_texts({"ema_decay": 0.99, "ema_length": 0.1})
    assert texts == {"ema_decay": "0.99"}
    form.check_together(form.arguments("a", DEMO, tmp_path, texts))


def train_namespace(options: dict, tmp_path):
    form = real_form()
    arguments = form.arguments("a", DEMO, tmp_path, form.texts(options))
    return train_script().build_parser().parse_args(arguments)


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", ".a", "a/b", "a\\b", "a\0", "\ud800", "x" * 201]
)
def test_names_that_no_run_has(name):
    with pytest.raises(Refusal) as refused:
        check_run_name(name)
    assert refused.value.status == 422 and refused.value.message.encode()


@pytest.mark.parametrize("name", ["mine", "-rf", "a b", "--resume=True", "läuft", "$(id)", "a;b"])
def test_names_of_runs(name, tmp_path):
    check_run_name(name)
    form = real_form()
    arguments = form.arguments(name, DEMO, tmp_path, {})
    assert train_script().build_parser().parse_args(arguments).run_name == name
