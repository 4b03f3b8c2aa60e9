"""Option types, the parser table, and that --help's choices are what the code knows."""

import argparse
import importlib.util

import pytest
from helpers import ROOT

from model.diffusion import LOSSES, PREDICTIONS
from model.modules.layers import ACTIVATIONS
from model.modules.resblock import TIME_EMBEDDINGS
from model.networks import DENOISERS, UPSCALERS
from model.noise_schedule import KNOWN_SCHEDULES
from model.samplers import SAMPLERS
from model.samplers.time_grid import TIMESTEP_SPACINGS
from utils import options as opt
from utils.data.cache import CACHE_CHOICES
from utils.data.conditions import KINDS
from utils.devices import COMPRESSION_HOOKS
from utils.image_facts import IMAGE_MODES
from utils.options import Option

SCRIPTS = (
    "train",
    "train_upscaler",
    "train_autoencoder",
    "generate",
    "upscale",
    "prepare_dataset",
    "evaluate",
)


def load(script):
    spec = importlib.util.spec_from_file_location(script, ROOT / "tools" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_choices_are_what_the_code_knows():
    for choice, known in [
        (opt.SAMPLERS, SAMPLERS),
        (opt.NETWORKS, DENOISERS),
        (opt.UPSCALERS, UPSCALERS),
        (opt.ACTIVATIONS, ACTIVATIONS),
        (opt.NOISE_SCHEDULES, KNOWN_SCHEDULES),
        (opt.TIMESTEP_SPACINGS, TIMESTEP_SPACINGS),
        (opt.PREDICTIONS, PREDICTIONS),
        (opt.LOSSES, LOSSES),
        (opt.TIME_EMBEDDINGS, TIME_EMBEDDINGS),
        (opt.CACHES, CACHE_CHOICES),
        (opt.IMAGE_MODES, ("auto", *IMAGE_MODES)),
        (opt.CONDITION_KINDS, KINDS),
        (opt.GRADIENT_COMPRESSIONS, COMPRESSION_HOOKS),
    ]:
        assert set(choice.values) == set(known)


def test_the_article_s_options_are_there():
    train = """
    --seed --conditional --sample --network --run_name --epochs --batch_size --num_workers
    --image_size --dataset_path --amp --fp16 --optim --loss --act --lr --lr_func --result_path
    --save_model_interval --save_model_interval_epochs --start_model_interval --vis --num_vis
    --image_format --noise_schedule --resume --start_epoch --pretrain --pretrain_path --use_gpu
    --distributed --main_gpu --world_size --num_classes --cfg_scale
    """
    generate = """
    --generate_name --image_size --image_format --num_images --weight_path --result_path
    --sample --class_name --cfg_scale --seed --sample_steps --eta --batch_size --use_ema
    --use_gpu --conditional --network --act --num_classes --animate
    """
    for script, flags in (("train", train), ("generate", generate)):
        assert set(flags.split()) <= set(load(script).build_parser()._option_string_actions)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_a_help_text(script):
    assert all(action.help for action in load(script).build_parser()._actions)


def test_switches():
    def parse(default, *argv):
        flag = Option("--flag", default, opt.switch, "a switch")
        table = {"g": [flag, Option("--n", 1, opt.natural, "a number")]}
        return opt.make_parser("", table).parse_args(argv).flag

    assert parse(True) is True and parse(False) is False and parse("True") is True
    assert (
        parse(False, "--flag") is True
        and parse(True, "--flag", "False") is False
        and parse(False, "--flag", "1") is True
    )
    assert parse(False, "--flag", "--n", "3") is True


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (opt.switch, {"true": True, "False": False, "0": False}, ["maybe", ""]),
        (opt.positive, {"1": 1, "20": 20}, ["0", "-1", "1.5", "x", "", "inf"]),
        (opt.natural, {"0": 0}, ["-1", "1e3"]),
        (opt.minus_one_up, {"-1": -1}, ["-2"]),
        (opt.epochs, {"1": 1, "1000000000": 10**9}, ["0", "10000000000000000"]),
        (opt.ema_length, {"0.1": 0.1, "1e-6": 1e-6}, ["0", "1e-200", "0.29"]),
        (opt.rate, {"1e-3": 0.001}, ["0", "-1", "nan", "inf"]),
        (opt.probability, {"0": 0.0, "1": 1.0}, ["1.1", "-0.1", "nan"]),
        (opt.below_one, {"0.5": 0.5}, ["1"]),
        (opt.whole_numbers, {"1,2,3": (1, 2, 3), "": (), "-1": (-1,)}, ["1;2", "a"]),
        (
            opt.image_size,
            {"64": (64, 64), "64,96": (64, 96)},
            ["0", "-8", "64x64", "1,2,3", "100000"],
        ),
        (opt.file_name, {"a b": "a b", "鞋": "鞋"}, ["", "a/b", "..", "a\0b", "x" * 300]),
    ],
)
def test_option_types(kind, good, bad):
    for text, value in good.items():
        assert kind(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_values_may_begin_with_a_minus(capsys):
    parser = load("train").build_parser()
    assert parser.parse_args(["--attention_levels", "-1,0"]).attention_levels == (-1, 0)
    assert parser.parse_args(["--start_epoch", "-1"]).start_epoch == -1
    with pytest.raises(SystemExit):
        parser.parse_args(["--lr", "-1e-3"])
    assert "a number above 0" in capsys.readouterr().err


def test_a_default_written_as_text_is_the_default():
    """As in the tables of other scripts, whose usual average is a fixed one."""
    table = {
        "g": [
            Option("--ema_length", None, opt.ema_length, "help"),
            Option("--ema_decay", "0.999", opt.below_one, "help"),
        ]
    }
    args = opt.make_parser("", table).parse_args(["--ema_length", "0.1"])
    opt.choose_average(args, table)
    assert args.ema_decay is None and args.ema_length == 0.1


def test_one_process_exchanges_no_gradients():
    train = load("train")
    for more, has_remark in (
        ([], True),
        (["--distributed", "--world_size", "1"], True),
        (["--distributed"], False),
    ):
        argv = ["--gradient_compression", "bf16", *more]
        args = train.build_parser().parse_args(argv)
        remarks = " ".join(opt.idle_remarks(args, train.OPTIONS))
        assert ("one process exchanges no gradients" in remarks) == has_remark


def test_an_edited_default_is_checked_like_input():
    for default, kind in [(0, opt.positive), ("maybe", opt.switch), ("vit", opt.NETWORKS)]:
        with pytest.raises(opt.UserError, match="default of --x"):
            opt.make_parser("", {"g": [Option("--x", default, kind, "help")]})


def test_a_mistake_is_one_sentence(capsys):
    for argv in (["--epochs", "0"], ["--bogus"], ["--sample", "dpm"], ["--epoch", "3"]):
        with pytest.raises(SystemExit) as stop:
            load("train").build_parser().parse_args(argv)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and argv[0] in error


def test_shared_rows_agree_with_train_s_own_table():
    shared = opt.shared_flags()
    common = [row for row in opt.options_of(load("train").OPTIONS) if row.flag in shared]
    assert len(common) >= 10
    for row in common:
        assert row.type == shared[row.flag], row.flag


def test_bounds_are_data():
    assert (opt.seed.low, opt.seed.high, opt.seed.kind) == (0, 2**32 - 1, int)
    assert opt.SAMPLERS.values == ("ddpm", "ddim", "plms", "dpmpp2m", "unipc")
    assert str(opt.probability) == "a number from 0 to 1"


@pytest.mark.parametrize("script", ["train_upscaler", "train_autoencoder"])
def test_every_option_of_a_derived_table_is_used(script):
    """By the script itself, or by what it has in common with train.py."""
    import inspect

    from utils.options import training
    from utils.training.run_options import RunOptions

    source = (ROOT / "tools" / f"{script}.py").read_text()
    source = source[source.index("def build_parser") :]
    common = inspect.getsource(training) + inspect.getsource(RunOptions)
    for option in opt.options_of(load(script).OPTIONS):
        name = option.name
        is_used = f"args.{name}" in source or f"args.{name}" in common or f"    {name}:" in common
        assert (
            is_used
            or f'"{name}"' in source
            or name in load(script).__dict__.get("OF_THE_NETWORK", ())
        ), name


def test_the_home_folder_of_nobody(capsys):
    with pytest.raises(SystemExit) as error:
        load("train").build_parser().parse_args(["--dataset_path", "~nobody-of-that-name/x"])
    assert error.value.code == 2
    assert "takes a path (~ and the name of a user of this machine)" in capsys.readouterr().err
    option = Option("--x", "~nobody-of-that-name/x", opt.path, "x")
    with pytest.raises(opt.UserError, match="the default of --x in the script takes a path"):
        opt.make_parser("x", {"x": [option]})
