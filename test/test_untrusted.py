"""Files and options from strangers: nothing runs, nothing hangs, every refusal is one sentence."""

import builtins
import copy
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import DEMO, TINY
from script_server import import_what_scripts_import
from upscaling_helpers import write_upscaler

from tools import evaluate as evaluate_script
from tools import generate as generate_script
from tools import prepare_dataset as prepare_script
from tools import train as train_script
from tools import train_autoencoder as train_autoencoder_script
from tools import train_upscaler as train_upscaler_script
from tools import upscale as upscale_script
from utils.errors import UserError
from utils.generation import load_for_inference
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_checkpoint, save_checkpoint
from utils.runs.inference import inference_network

NETWORK = {
    "name": "unet",
    "in_channels": 1,
    "num_classes": 2,
    "channels": 8,
    "channel_mult": [1],
    "head_channels": 8,
}


def good_contents():
    from model.networks import build_network

    network = build_network(NETWORK)
    diffusion = {"noise_steps": 10, "noise_schedule": "linear", "prediction": "eps"}
    data = {"image_size": [8, 8], "mode": "L", "class_names": ["a", "b"]}
    config = {"network": network.config, "diffusion": diffusion, "data": data}
    return {
        "format_version": 1,
        "config": config,
        "ema": network.state_dict(),
        "args": {"sample": "ddim"},
    }


# --- Payloads ---


class Call:
    """Pickles as a call of fn(*args)."""

    def __init__(self, fn, *args):
        self.fn, self.args = fn, args

    def __reduce__(self):
        return self.fn, self.args


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["system", "eval", "nested"])
def test_code_in_a_file_does_not_run(tmp_path, kind, legacy):
    canary, file = tmp_path / "canary", tmp_path / "evil.pt"
    payload = {
        "system": Call(os.system, f"touch {canary}"),
        "eval": Call(builtins.eval, f"open({str(canary)!r}, 'w').close()"),
        "nested": {"format_version": 1, "args": [{"deep": (Call(os.system, f"touch {canary}"),)}]},
    }[kind]
    torch.save(
        {"network": payload, **good_contents()}, file, _use_new_zipfile_serialization=not legacy
    )
    torch.load(file, weights_only=False)
    assert canary.exists()  # the payload is live
    canary.unlink()
    with pytest.raises(UserError, match="evil.pt"):
        load_for_inference(file)
    file.write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match="evil.pt"):
        load_for_inference(file)
    assert not canary.exists()


def test_a_huge_tensor_in_a_small_file(tmp_path):
    contents = good_contents()
    contents["ema"]["conv_in.weight"] = torch.zeros(1).expand(10**12)
    save_checkpoint(contents, tmp_path / "huge.pt")
    with pytest.raises(
        UserError, match=r"conv_in.weight \(1000000000000,\) instead of \(8, 1, 3, 3\)"
    ):
        load_for_inference(tmp_path / "huge.pt")


def test_a_zip_that_unpacks_to_too_much(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 10**8)
    with pytest.raises(UserError, match="bomb.pt is no checkpoint: it unpacks to more than itself"):
        load_for_inference(file)
    with zipfile.ZipFile(file, "w") as archive:  # many names for the same bytes
        archive.writestr("bomb/data.pkl", b"\0" * 10**6)
        for i in range(100):
            archive.filelist.append(copy.copy(archive.filelist[0]))
            archive.filelist[-1].filename = f"bomb/{i}"
        archive._didModify = True
    with pytest.raises(UserError, match="unpacks to more than itself|damaged"):
        load_for_inference(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["config"]["network"].update(channels=2**20),
        lambda c: c["config"]["network"].update(channel_mult=[1] * 1000),
        lambda c: c["config"]["network"].update(blocks_per_level=10**6),
        lambda c: c["config"]["network"].update(
            channels=2048, channel_mult=[64] * 8, blocks_per_level=16
        ),
        lambda c: c["config"]["data"].update(image_size=[10**6, 10**6]),
        lambda c: c["config"]["data"].update(class_names=["a"]),
        lambda c: c["config"]["data"].update(class_names=[1, 2]),
        lambda c: c["config"]["data"].update(mode="CMYK"),
        lambda c: c["config"]["diffusion"].update(noise_steps=10**15),
        lambda c: c["config"]["diffusion"].update(noise_schedule="x"),
        lambda c: c["config"]["diffusion"].pop("prediction"),
        lambda c: c["config"]["diffusion"].update(surprise=1),
        lambda c: c["config"].pop("data"),
        lambda c: c.update(config="x"),
        lambda c: c.update(args={"sample": "dpm"}),
        lambda c: c.pop("args"),
        lambda c: c.update(ema="x"),
        lambda c: c["ema"].update({"conv_in.weight": 3}),
    ],
)
def test_metadata_is_bounded_before_a_network_is_built(tmp_path, change):
    contents = good_contents()
    change(contents)
    save_checkpoint(contents, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="odd.pt|noise_st|noise_sch"):
        generate_script.main(
            ["--weight_path", str(tmp_path / "odd.pt"), "--result_path", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("0*"))


@pytest.mark.parametrize(
    "name", ["../../up", "<script>alert(1)</script>", "a\0b", "x" * 10_000, "/etc/passwd", "鞋"]
)
def test_a_class_name_chooses_no_path(tmp_path, name):
    contents = good_contents()
    contents["config"]["data"]["class_names"] = [name, "b"]
    save_checkpoint(contents, tmp_path / "w.pt")
    argv = [
        "--weight_path",
        str(tmp_path / "w.pt"),
        "--result_path",
        str(tmp_path / "out"),
        "--num_images",
        "2",
    ]
    with pytest.raises(SystemExit) as stop:
        generate_script.main([*argv, "--sample_steps", "2", "--class_name", "0", "--use_gpu", "-1"])
    assert stop.value.code == 0
    made = sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    )
    assert made == [
        "out/generated/00000.png",
        "out/generated/00001.png",
        "out/generated/grid.png",
        "w.pt",
    ]


def test_2000_mutations_are_equal_or_refused(tmp_path):
    """Bytes changed at random, in a child process with a bounded memory: never a signal, never
    other weights.
    """
    file, contents = tmp_path / "w.pt", good_contents()
    save_checkpoint(contents, file)
    good, chance = file.read_bytes(), random.Random(0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
            signal.alarm(300)  # a hang is a failure too
            for _ in range(2000):
                data = bytearray(good)
                for _ in range(chance.choice([1, 1, 2, 8])):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                file.write_bytes(data)
                try:
                    found = read_checkpoint(file)
                    inference_network(Checkpoint.parse(found, file))
                except UserError as error:
                    assert "\n" not in str(error) and str(file) in str(error)
                    continue
                assert all(
                    torch.equal(found["ema"][key], contents["ema"][key]) for key in contents["ema"]
                )
                assert found["config"] == contents["config"]
            code = 0
        except BaseException as error:
            print(repr(error), flush=True)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- Options: every one has a case that is refused, with its name and one sentence ---

BAD = {  # option: values that are refused; None where nothing is wrong by itself
    "--run_name": ["a/b", "", ".."],
    "--dataset_path": ["missing", "{file}", "{empty}", ""],
    "--result_path": ["{file}", ""],
    "--mode": ["grey"],
    "--cache": ["memory"],
    "--image_size": ["0", "x", "64,", "1,2,3", "7"],
    "--conditional": ["maybe"],
    "--num_classes": ["0", "x", "7"],
    "--val_fraction": ["-0.1", "0.6", "x", "0.01"],
    "--flip": ["2"],
    "--balance": ["2"],
    "--augment": ["-0.1", "1.1", "x"],
    "--resume": ["True", "x"],
    "--allow_changes": ["x"],
    "--start_epoch": ["-2", "x"],
    "--pretrain": ["True", "x"],
    "--pretrain_path": [""],
    "--autoencoder_path": ["missing", "{file}", "{empty}", "{weights}"],
    "--latent": ["True", "x"],
    "--seed": ["-1", "1.5", "99999999999999999999"],
    "--plan": ["x"],
    "--preset": ["huge"],
    "--network": ["vit"],
    "--channels": ["0", "7", "100000"],
    "--channel_mult": ["", "0", "a", "1,1,1,1,1,1,1,1,1"],
    "--blocks_per_level": ["0", "1000"],
    "--attention_levels": ["9", "x"],
    "--head_channels": ["0", "7"],
    "--norm_groups": ["0", "x"],
    "--time_embedding": ["film"],
    "--act": ["tanh"],
    "--dropout": ["1", "-0.1"],
    "--noise_schedule": ["linera"],
    "--noise_shift": ["0", "-1", "1001", "nan"],
    "--zero_terminal_snr": ["x"],
    "--noise_steps": ["0", "10000000", "10"],
    "--prediction": ["epsilon"],
    "--loss": ["mae"],
    "--loss_weight": ["p2"],
    "--time_steps": ["importance"],
    "--label_drop": ["1.1", "nan"],
    "--minutes": ["0", "-1", "nan", "x"],
    "--epochs": ["0", "-3", "x"],
    "--batch_size": ["0", "1.5"],
    "--grad_accum": ["0"],
    "--optim": ["lion"],
    "--lr": ["0", "-1", "nan", "inf"],
    "--lr_func": ["step"],
    "--warmup_steps": ["-1"],
    "--weight_decay": ["-1", "2"],
    "--grad_clip": ["-1"],
    "--ema_length": ["0", "0.29", "x"],
    "--ema_decay": ["1", "-1"],
    "--ema_snapshots": ["-1", "x"],
    "--guide_share": ["-0.1", "1", "x"],
    "--condition_path": ["missing", "{file}", "{empty}", ""],
    "--condition_kind": ["edges"],
    "--condition_drop": ["-1", "2"],
    "--joint_masks": ["x", "True"],
    "--amp": ["x"],
    "--save_model_interval": ["x"],
    "--save_model_interval_epochs": ["0"],
    "--start_model_interval": ["-2"],
    "--save_every_steps": ["-1"],
    "--keep": ["-1"],
    "--vis": ["x"],
    "--vis_interval_epochs": ["0"],
    "--eval_interval_epochs": ["0", "x"],
    "--eval_images": ["-1", "x"],
    "--num_vis": ["0"],
    "--image_format": ["bmp"],
    "--sample": ["dpm"],
    "--sample_steps": ["0", "1001"],
    "--timestep_spacing": ["even"],
    "--cfg_scale": ["-1", "nan"],
    "--cfg_interval": ["1", "2,1", "0,inf", "x"],
    "--guide_path": ["missing", "{file}", "{empty}", "{enlarging}"],
    "--guide_scale": ["-1", "nan"],
    "--guide_labels": ["x"],
    "--log_interval": ["0"],
    "--use_gpu": ["-2", "x"],
    "--num_workers": ["-2"],
    "--checkpoint_activations": ["9", "x"],
    "--compile": ["x"],
    "--cuda_graph": ["x"],
    "--distributed": ["x"],
    "--world_size": ["0"],
    "--main_gpu": ["-1"],
    "--timeout": ["0", "1e10"],
    "--gradient_compression": ["fp8"],
    # generate.py
    "--weight_path": ["missing", "{file}", "{empty}"],
    "--num_images": ["0"],
    "--numbers": ["age", "age=x", "=3", "age=1"],
    "--class_name": ["c", "2", "-2"],
    "--condition": ["missing", "{file}", "{empty}", ""],
    "--eta": ["1.1"],
    "--clip_sample": ["x"],
    "--use_ema": ["x", "False"],
    "--init_image": ["missing", "{file}", "{empty}"],
    "--strength": ["0", "1.1", "0.5"],
    "--mask": ["missing"],
    "--repeats": ["0", "2"],
    "--outpaint": ["1,2,3", "0,0,0,0", "-1,0,0,0", "x"],
    "--interpolate": ["1", "1,2,3", "a,b"],
    "--invert": ["missing", "{file}", "{empty}"],
    "--generate_name": ["a/b", ""],
    "--animate": ["mp4"],
    "--nearest": ["missing", "{file}", "{empty}"],
    "--upscale": ["missing", "{file}", "{empty}", "{weights}"],
    # evaluate.py
    "--paired": ["x", "True"],
    "--copies": ["missing", "{file}", "{empty}", ""],
    "--run": ["", "{empty}"],
    "--features": ["vgg", "timm:", ""],
    "--feature_weights": ["", "{file}"],
    "--feature_size": ["31", "1025", "x", "64"],
    "--num_compared": ["-1", "x"],
    "--evaluate_name": ["a/b", ""],
    "--json": ["", "{empty}", "{file}/x", "missing/x"],
    # upscale.py
    "--tile": ["-1", "x", "1.5"],
    "--recompute": ["x"],
    # train_upscaler.py
    "--scale": ["1", "5", "x"],
    "--blocks": ["0", "1000"],
    "--layers": ["0", "1000"],
    "--growth": ["0", "100000"],
    "--crop_size": ["3", "x"],
    "--degrade": ["x"],
    "--luma": ["x"],
    # train_autoencoder.py
    "--block_out_channels": ["", "0", "a", "6"],
    "--latent_channels": ["0", "100000"],
    "--layers_per_block": ["0", "1000"],
    "--norm_num_groups": ["0", "3"],
    "--mid_block_add_attention": ["x"],
    "--ssim_weight": ["-1", "nan"],
    "--ms_ssim": ["x"],
    "--kl_weight": ["-1", "inf"],
    "--feature_weight": ["-1", "x"],
    # prepare_dataset.py
    "--out": ["", "{full}"],
    "--split": ["all"],
    "--source": [""],
    "--per_class": ["0"],
}


@pytest.mark.parametrize(
    "script",
    [
        train_script,
        train_upscaler_script,
        train_autoencoder_script,
        generate_script,
        prepare_script,
        evaluate_script,
        upscale_script,
    ],
    ids=lambda script: script.__name__.removeprefix("tools."),
)
def test_every_option_refuses_what_it_cannot_do(script, tmp_path, images, capsys):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").mkdir()
    save_checkpoint(good_contents(), tmp_path / "w.pt")
    write_upscaler(tmp_path / "u.pt")
    training = ["--dataset_path", str(images), "--result_path", str(tmp_path / "out")]
    training += ["--use_gpu", "-1"]
    base = {
        train_script: training,
        train_upscaler_script: [*training, "--features", "8", "--image_size", "12"],
        train_autoencoder_script: [
            *training,
            "--image_size",
            "12",
            "--block_out_channels",
            "8,8",
            "--norm_num_groups",
            "4",
        ],
        generate_script: [
            "--weight_path",
            str(tmp_path / "w.pt"),
            "--result_path",
            str(tmp_path / "out"),
        ],
        prepare_script: ["mnist", "--out", str(tmp_path / "out")],
        evaluate_script: [
            str(images),
            "--weight_path",
            str(tmp_path / "w.pt"),
            "--copies",
            str(images),
            "--features",
            "none",
            "--result_path",
            str(tmp_path / "out"),
        ],
        upscale_script: [
            str(images),
            str(tmp_path / "out"),
            "--weight_path",
            str(tmp_path / "u.pt"),
        ],
    }[script]
    places = {"file": tmp_path / "file", "empty": tmp_path / "empty", "full": DEMO}
    places["weights"] = tmp_path / "w.pt"  # of a diffusion
    places["enlarging"] = tmp_path / "u.pt"
    for action in script.build_parser()._actions:
        flag = action.option_strings[0] if action.option_strings else ""
        if flag in ("", "-h"):
            continue
        assert flag in BAD, f"{flag} has no case of bad input"
        for value in BAD[flag]:
            any_size = (train_script, generate_script, evaluate_script, train_upscaler_script)
            if script in any_size and (flag, value) == ("--image_size", "7"):
                continue  # works there: the network has, or gets, one level
            begun = time.monotonic()
            with pytest.raises((SystemExit, UserError)) as stop:
                script.main([*base, f"{flag}={value.format(**places)}"])
            assert time.monotonic() - begun < 10, (flag, value)
            if stop.type is SystemExit:
                assert stop.value.code == 2, (flag, value)
                message = capsys.readouterr().err
                assert flag in message and message.count("\n") == 1
            else:
                assert 10 < len(str(stop.value)) < 1000 and "\n" not in str(stop.value), (
                    flag,
                    value,
                )
    assert not list(tmp_path.rglob("*.csv"))


@pytest.fixture
def shared_folder():
    """A folder that everybody may enter and write into; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def said_by_nobody(script, *argv) -> tuple[int, str]:
    """The exit status and the output of a script run by a user who is not root, so that permissions
    count.
    """
    import_what_scripts_import()  # nobody may be unable to read the packages
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for stream in (1, 2):
                os.dup2(write, stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            script.main([str(part) for part in argv])
        except SystemExit as stop:
            code = stop.code
        except UserError as error:
            os.write(write, str(error).encode())
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        output = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def test_what_may_not_be_read_or_written(images, shared_folder):
    data, results, weights = (
        shared_folder / "images",
        shared_folder / "results",
        shared_folder / "w.pt",
    )
    shutil.copytree(images, data)
    results.mkdir()
    save_checkpoint(good_contents(), weights)
    train = [
        train_script,
        "--dataset_path",
        data,
        "--result_path",
        results,
        "--use_gpu",
        "-1",
        *TINY,
        "--epochs",
        1,
    ]
    generate = [
        generate_script,
        "--weight_path",
        weights,
        "--result_path",
        results,
        "--use_gpu",
        "-1",
    ]
    generate += ["--sample_steps", 2]

    def refused(place, mode, sentence, *command):
        before = place.stat().st_mode
        place.chmod(mode)
        status, output = said_by_nobody(*command)
        place.chmod(before)
        assert status == 2 and sentence in output and output.count("\n") == 0, output

    refused(
        results,
        0o555,
        f"the results folder {results / 'a'} cannot be written: Permission",
        *train,
        "--run_name",
        "a",
    )
    refused(
        results,
        0o555,
        f"cannot make the folder {results / 'generated'}: Permission denied",
        *generate,
    )
    refused(weights, 0, f"the checkpoint {weights} cannot be read: Permission denied", *generate)
    results.chmod(0o777)
    for place, extra in [
        (data, []),
        (data / "boot", []),
        (data / "boot", ["--conditional", "False"]),
    ]:
        refused(place, 0, f"the folder {place} cannot be read: Permission denied", *train, *extra)
    (data / "boot" / "000.png").chmod(0)
    status, output = said_by_nobody(*train, "--run_name", "b")
    assert status == 0 and "left out    1: boot/000.png ([Errno 13] Permission denied" in output, (
        output
    )
    assert said_by_nobody(*generate)[0] == 0


def test_files_of_another_kind_to_go_on_from(images, tmp_path):
    base = [
        "--dataset_path",
        str(images),
        "--result_path",
        str(tmp_path),
        "--use_gpu",
        "-1",
        *TINY,
        "--run_name",
        "a",
    ]
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "ckpt_last.pt"
    for contents in (
        {"w": torch.zeros(3)},  # a bare state_dict
        {"format_version": 1},
        {**good_contents(), "config": "x"},
        {**good_contents(), "state": {"step": 3, "seed": 0, "epoch": 1}, "versions": {}},
        {**good_contents(), "args": 7, "state": 3},
    ):
        torch.save(contents, file)
        with pytest.raises(
            UserError,
            match="ckpt_last.pt (holds bare|is not usable: |was made with other settings)",
        ):
            train_script.main([*base, "--resume"])
        with pytest.raises(
            UserError, match="ckpt_last.pt"
        ):  # odd, or the weights of a smaller network
            train_script.main(
                [*base, "--run_name", "b", "--pretrain", "--pretrain_path", str(file)]
            )


def test_options_that_contradict_each_other(images, tmp_path):
    base = ["--dataset_path", str(images), "--result_path", str(tmp_path), "--use_gpu", "-1"]
    for options, message in [
        (["--pretrain"], "needs --pretrain_path"),
        (["--pretrain", "--pretrain_path", "x", "--resume"], "leave one of them out"),
        (["--pretrain_path", "x"], "--pretrain_path .*x does nothing without --pretrain"),
        (["--start_epoch", "3"], "--start_epoch 3 does nothing without --resume"),
        (["--keep", "3"], "does nothing without --save_model_interval"),
        (["--start_model_interval", "3"], "does nothing without --save_model_interval"),
        (
            ["--label_drop", "0"],
            "nothing unconditional is learned to guide with: add --cfg_scale 1",
        ),
        (["--noise_steps", "20", "--sample_steps", "25"], "more than --noise_steps"),
        (["--conditional", "False", "--num_classes", "3"], "belongs to --conditional"),
        (
            ["--time_steps", "weighted", "--loss_weight", "uniform"],
            "--time_steps weighted draws by --loss_weight, which is uniform",
        ),
        (["--num_classes", "2"], "has 3 class folders"),
        (
            ["--image_size", "30", "--channel_mult", "1,2,3"],
            "multiples of 4; 28,28 and 32,32 would work",
        ),
        (["--distributed", "--world_size", "2", "--main_gpu", "2"], "outside the 2 processes"),
        (["--resume", "--run_name", "typo"], "there is no run .*typo"),
        (["--pretrain", "--pretrain_path", str(images)], "cannot be read: Is a directory"),
    ]:
        with pytest.raises(UserError, match=message):
            train_script.main([*base, *options])
    assert not (tmp_path / "typo").exists()
