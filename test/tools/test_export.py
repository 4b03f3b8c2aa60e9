"""export.py and folders of diffusers: the same images in both libraries."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from helpers import ROOT, TINY, copy_some
from PIL import Image

from model.samplers import build_sampler
from utils.errors import UserError
from utils.exchange import to_diffusers, to_files
from utils.exchange.to_diffusers import scheduler_options
from utils.generation import load_for_inference
from utils.runs import safetensors
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_checkpoint, read_metadata, save_checkpoint

DEMO = ROOT / "weight/demo.pt"


def random_network(network, seed=0):
    torch.manual_seed(seed)
    for parameter in network.parameters():  # the zero-initialised layers too
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        torch.nn.init.normal_(parameter, std=fan**-0.5)
    return network.eval()


def ddim_images(pipeline, sampler, seeds, shape):
    """What diffusers' DDIM makes of the noise that our sampler begins with."""
    pipeline.set_progress_bar_config(disable=True)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
    scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=True
    )
    scheduler.set_timesteps(len(sampler.grid))
    assert scheduler.timesteps.tolist() == sampler.grid
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipeline.unet(x, t).sample
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    return x


# --- Out ---


def test_a_class_of_the_demo_is_drawn_by_diffusers(script, tmp_path):
    script("export", DEMO, tmp_path / "boots", "--class_name", "boot")
    network, process, names = load_for_inference(DEMO)
    label = names.index("boot")
    sampler = build_sampler("ddim", process, sample_steps=20)
    ours = sampler.sample(network, 2, (28, 28), 1, labels=[label] * 2, seeds=[5, 6])
    for kind in (DDPMPipeline, DDIMPipeline):
        pipeline = kind.from_pretrained(tmp_path / "boots", local_files_only=True)
        theirs = ddim_images(pipeline, sampler, [5, 6], (1, 28, 28))
        assert (ours - theirs).abs().max() < 1e-4
    image = pipeline(num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 28, 28, 1)


PROCESSES = [
    [],
    ["--noise_schedule", "linear", "--prediction", "eps"],
    ["--noise_schedule", "sqrt", "--prediction", "x0"],
    ["--noise_schedule", "sqrt_linear", "--zero_terminal_snr", "True"],
    ["--noise_shift", "2"],
    ["--noise_steps", "250"],
]


@pytest.mark.fault
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: " ".join(process) or "usual")
def test_any_process_goes_out_and_comes_back(script, tmp_path, process):
    images = copy_some(tmp_path / "images")
    common = ["--dataset_path", images, *TINY, "--vis", "False", "--conditional", "False"]
    script("train", *common, "--epochs", 1, "--lr", 0.01, "--augment", 0, *process)
    weights = tmp_path / "results/demo/ema_last.pt"
    script("export", weights, tmp_path / "out")
    network, config, _ = load_for_inference(weights)
    sampler = build_sampler("ddim", config, sample_steps=10)
    ours = sampler.sample(network, 2, (8, 8), 1, seeds=[1, 2])
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    theirs = ddim_images(pipeline, sampler, [1, 2], (1, 8, 8))
    assert (ours - theirs).abs().max() < 1e-3
    if "trained_betas" in json.loads(
        (tmp_path / "out/scheduler/scheduler_config.json").read_text()
    ):
        return  # only its betas name such a process
    back, again, _ = load_for_inference(tmp_path / "out")
    plain = build_sampler("ddim", again, sample_steps=10)
    assert (plain.alphas_cumprod - sampler.alphas_cumprod).abs().max() < 1e-9
    assert (plain.sample(back, 2, (8, 8), 1, seeds=[1, 2]) - ours).abs().max() < 1e-5


def test_safetensors_has_the_weights_and_the_config(script, tmp_path):
    import safetensors

    script("export", DEMO, tmp_path / "demo.safetensors", "--format", "safetensors")
    checkpoint = Checkpoint.read(DEMO)
    with safetensors.safe_open(tmp_path / "demo.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        assert config["network"] == json.loads(json.dumps(checkpoint.config["network"]))
        assert config["data"]["class_names"] == checkpoint.class_names
        for name, weight in checkpoint.ema.items():
            assert torch.equal(file.get_tensor(name), weight)


def test_what_was_exported_as_safetensors_makes_the_same_images(script, tmp_path):
    """With its guide, and without an option that says what it is."""
    script("export", DEMO, tmp_path / "demo.safetensors", "--format", "safetensors")
    options = ["--num_images", 2, "--class_name", "boot", "--sample_steps", 3]
    for name, weights in (("a", DEMO), ("b", tmp_path / "demo.safetensors")):
        script("generate", "--weight_path", weights, *options, "--generate_name", name)
    for image in ("00000.png", "00001.png"):
        pixels = [np.asarray(Image.open(tmp_path / "results" / run / image)) for run in ("a", "b")]
        assert np.array_equal(*pixels)
    back, checkpoint = Checkpoint.read(tmp_path / "demo.safetensors"), Checkpoint.read(DEMO)
    assert back.config == json.loads(json.dumps(checkpoint.config))
    assert (back.guide is None) == (checkpoint.guide is None)


def test_what_was_exported_as_safetensors_is_trained_further(script, tmp_path):
    """Its network is rebuilt, though no preset has it."""
    images = copy_some(tmp_path / "images")
    data = ["--dataset_path", images, "--image_size", 8, "--epochs", 1, "--vis", "False"]
    odd = ["--channels", 12, "--channel_mult", "1,2", "--norm_groups", 3, "--head_channels", 6]
    script("train", *data, *odd, "--act", "gelu", "--batch_size", 4, "--run_name", "first")
    weights = tmp_path / "results/first/ema_last.pt"
    script("export", weights, tmp_path / "first.safetensors", "--format", "safetensors")
    assert (
        read_metadata(tmp_path / "first.safetensors")["config"] == read_metadata(weights)["config"]
    )
    for name, file in (("a", weights), ("b", tmp_path / "first.safetensors")):
        start = ["--pretrain", "--pretrain_path", file, "--batch_size", 4]
        script("train", *data, *start, "--run_name", name)
    runs = [Checkpoint.read(tmp_path / "results" / name / "ckpt_last.pt") for name in ("a", "b")]
    assert runs[0].config["network"] == runs[1].config["network"]
    assert runs[0].config["network"]["norm_groups"] == 3
    assert all(
        torch.equal(runs[0].network[name], runs[1].network[name]) for name in runs[0].network
    )


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = Checkpoint.read(DEMO)
    monkeypatch.setattr(to_diffusers, "_write_json", full)
    monkeypatch.setattr(safetensors, "sync_file", full)
    with pytest.raises(OSError):
        to_diffusers.export_pipeline(checkpoint, tmp_path / "folder", label=0)
    with pytest.raises(OSError):
        to_files.export_safetensors(checkpoint, tmp_path / "file.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_upscaler_exported_as_safetensors_upscales(script, tmp_path):
    script(
        "export",
        ROOT / "weight/upscaler_x2.pt",
        tmp_path / "x2.safetensors",
        "--format",
        "safetensors",
    )
    image = next((ROOT / "datasets/demo").rglob("*.png"))
    Image.open(image).convert("RGB").save(tmp_path / "small.png")
    script(
        "upscale",
        tmp_path / "small.png",
        tmp_path / "large.png",
        "--weight_path",
        tmp_path / "x2.safetensors",
    )
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (56, 56)


def augmented_run(script, tmp_path, *options):
    images = copy_some(tmp_path / "images")
    common = ["--dataset_path", images, *TINY, "--vis", "False", "--conditional", "False"]
    script("train", *common, "--epochs", 1, "--lr", 0.01, *options)
    return tmp_path / "results/demo/ema_last.pt"


def test_a_network_that_learned_of_augmentations_goes_out_without_them(script, tmp_path):
    weights = augmented_run(script, tmp_path, "--augment", 0.5)
    script("export", weights, tmp_path / "out")
    network, config, _ = load_for_inference(weights)
    back, _, _ = load_for_inference(tmp_path / "out")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    assert (network(x, t) - back(x, t)).abs().max() < 1e-5
    theirs = UNet2DModel.from_pretrained(tmp_path / "out/unet", local_files_only=True)
    assert (network(x, t) - theirs(x, t).sample).abs().max() < 1e-5


def test_norms_of_different_groups_are_not_exported(script, tmp_path):
    options = ["--channels", 8, "--channel_mult", "1,3", "--norm_groups", 6, "--head_channels", 8]
    weights = augmented_run(script, tmp_path, *options)
    error = script("export", weights, tmp_path / "out", status=2).stderr
    assert "its norms have 2, 6 groups" in error, error
    assert not (tmp_path / "out").exists()


def test_a_short_cosine_goes_out_by_its_name():
    process = {"noise_steps": 10, "noise_schedule": "cosine", "prediction": "v"}
    options = scheduler_options(process)
    assert options["beta_schedule"] == "squaredcos_cap_v2"
    theirs = diffusers.DDPMScheduler.from_config(options).alphas_cumprod.double()
    ours = build_sampler("ddim", process).alphas_cumprod
    assert (theirs - ours).abs().max() < 1e-6


def test_a_short_process_goes_out_as_its_betas(script, tmp_path):
    """Scaled to 10 steps the largest beta would be 2: it is 0.999."""
    weights = augmented_run(script, tmp_path, "--noise_schedule", "linear", "--noise_steps", 10)
    script("export", weights, tmp_path / "out")
    _, config, _ = load_for_inference(weights)
    scheduler = diffusers.DDPMScheduler.from_pretrained(
        tmp_path / "out/scheduler", local_files_only=True
    )
    ours = build_sampler("ddim", config).alphas_cumprod
    assert (scheduler.alphas_cumprod.double() - ours).abs().max() < 1e-6
    assert (scheduler.alphas_cumprod > 0).all()


def test_mistakes(script, tmp_path):
    out = tmp_path / "out"
    assert "--class_name" in script("export", DEMO, out, status=2).stderr
    unknown = script("export", DEMO, out, "--class_name", "hat", status=2).stderr
    assert "known are bag" in unknown
    assert not out.exists()
    exists = script("export", DEMO, tmp_path, "--class_name", "boot", status=2).stderr
    assert "exists: choose another name" in exists
    upscaler = ROOT / "weight/upscaler_x2.pt"
    assert "upscaler" in script("export", upscaler, out, status=2).stderr
    contents = read_checkpoint(DEMO)
    contents["config"]["diffusion"] |= {"noise_schedule": "flow"}
    save_checkpoint(contents, tmp_path / "flow.pt")
    flow = script("export", tmp_path / "flow.pt", out, "--class_name", "boot", status=2).stderr
    assert "no rectified flow" in flow
    images = copy_some(tmp_path / "images")
    options = ["--dataset_path", images, "--mode", "RGBA", "--conditional", "False", *TINY]
    script("train", *options, "--epochs", 1, "--vis", "False")
    opacity = script("export", tmp_path / "results/demo/ema_last.pt", out, status=2).stderr
    assert "images of mode RGBA; diffusers' pipelines, grey or RGB" in opacity


# --- In ---

CIFAR = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "act_fn": "silu",
}


def pipeline_of(folder, scheduler=None, **options):
    network = random_network(UNet2DModel(**{**CIFAR, **options}))
    scheduler = scheduler or diffusers.DDPMScheduler(1000, clip_sample=True)
    DDPMPipeline(network, scheduler).save_pretrained(folder)
    return DDPMPipeline.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0},
        {"attention_head_dim": 16, "in_channels": 1, "out_channels": 1},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
        {"add_attention": False, "layers_per_block": 1},
    ],
    ids=["google", "defaults", "grey", "scale_shift", "no middle attention"],
)
def test_a_pipeline_of_diffusers_comes_in(tmp_path, options):
    pipeline = pipeline_of(tmp_path / "theirs", **options)
    network, process, names = load_for_inference(tmp_path / "theirs")
    assert names == []
    channels = network.config["in_channels"]
    sampler = build_sampler("ddim", process, sample_steps=20)
    ours = sampler.sample(network, 2, (16, 16), channels, seeds=[1, 2])
    theirs = ddim_images(pipeline, sampler, [1, 2], (channels, 16, 16))
    assert (ours - theirs).abs().max() < 1e-4


def test_generate_evaluate_and_fine_tune_from_a_folder(script, tmp_path):
    pipeline_of(tmp_path / "theirs")
    script("generate", "--weight_path", tmp_path / "theirs", "--num_images", 2, "--sample_steps", 3)
    with Image.open(tmp_path / "results/generated/00000.png") as picture:
        assert picture.size == (16, 16) and picture.mode == "RGB" and np.asarray(picture).std() > 0
    # fine-tuned on grey pictures in colour, without another option but the network's
    images = copy_some(tmp_path / "images")
    options = ["--dataset_path", images, "--mode", "RGB", "--image_size", 16, "--epochs", 1]
    options += ["--conditional", "False", "--vis", "False", "--batch_size", 4, "--augment", 0]
    options += ["--prediction", "eps", "--noise_schedule", "linear"]
    out = script("train", *options, "--pretrain", "--pretrain_path", tmp_path / "theirs").stdout
    assert "the weights were trained" not in out and "are new" not in out
    theirs = read_checkpoint(tmp_path / "theirs")
    ours = read_checkpoint(tmp_path / "results/demo/ema_last.pt")
    assert ours["config"]["network"]["channel_mult"] == theirs["config"]["network"]["channel_mult"]


def test_fine_tuning_computes_as_the_folder_does(script, tmp_path):
    """Google's networks differ in details from ours; a run that is resumed keeps them too."""
    pipeline_of(tmp_path / "theirs", act_fn="gelu")
    theirs, _, _ = load_for_inference(tmp_path / "theirs")
    images = copy_some(tmp_path / "images")
    options = ["--dataset_path", images, "--mode", "RGB", "--image_size", 16, "--epochs", 1]
    options += ["--conditional", "False", "--vis", "False", "--batch_size", 4, "--augment", 0]
    options += ["--prediction", "eps", "--noise_schedule", "linear", "--lr", 1e-12]
    out = script("train", *options, "--pretrain", "--pretrain_path", tmp_path / "theirs").stdout
    assert "begins worse" not in out
    script("train", *options, "--epochs", 2, "--resume")
    ours, _, _ = load_for_inference(tmp_path / "results/demo/ema_last.pt")
    assert ours.config == theirs.config | {"out_channels": None}
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    assert (ours(x, t) - theirs(x, t)).abs().max() < 1e-5


def test_old_names_and_bin_files(tmp_path):
    pipeline_of(tmp_path / "theirs")
    network, _, _ = load_for_inference(tmp_path / "theirs")
    unet = tmp_path / "theirs/unet"
    weights = UNet2DModel.from_pretrained(unet, local_files_only=True).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, before in old.items():
        weights = {
            name.replace(f".{new}.", f".{before}."): value[:, :, None, None]
            if f".{new}.weight" in name and value.dim() == 2
            else value
            for name, value in weights.items()
        }
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, unet / "diffusion_pytorch_model.bin")
    again, _, _ = load_for_inference(tmp_path / "theirs")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    alone, _, _ = load_for_inference(unet)  # the network's folder by itself
    assert alone.config == network.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"block_out_channels": [32, 48, 64]}, "multiples of the first"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "the same on the way up"),
        ({"_class_name": "UNet2DConditionModel"}, "describes 'UNet2DConditionModel'"),
        ({"strange": 1}, "options that are not supported here: strange"),
        ({"layers_per_block": 1}, "hold what this network has not"),
        ({"act_fn": "mish"}, "mish"),
        ({"sample_size": "big"}, "sample_size"),
        ({"attn_norm_num_groups": 8}, "the same as norm_num_groups, 32, is"),
        ({"downsample_padding": 2}, "only 1 or 0 is"),
        ({"resnet_time_scale_shift": "ada_group"}, "only 'default' or 'scale_shift' is"),
        ({"add_attention": "no"}, "mid_attention is True or False"),
        ({"norm_eps": None}, "norm_eps is a number above 0"),
        ({"freq_shift": "a"}, "freq_shift is a number"),
        ({"flip_sin_to_cos": "a"}, "cos_first is True or False"),
        ({"dropout": None}, "dropout is a probability below 1"),
        ({"act_fn": ["silu"]}, "act is one of"),
        ({"down_block_types": [["DownBlock2D"]] * 3}, "the same on the way up"),
    ],
)
def test_what_our_network_cannot_be_is_said(tmp_path, change, message):
    pipeline_of(tmp_path / "theirs")
    change_json(tmp_path / "theirs/unet/config.json", change)
    with pytest.raises(UserError, match=re.escape(message)):
        read_checkpoint(tmp_path / "theirs")


def change_json(file, change):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_timesteps": "1000"}, "num_train_timesteps '1000'"),
        ({"num_train_timesteps": 0}, "noise_steps must lie in 1"),
        ({"beta_start": None}, "beta_start None"),
        ({"beta_end": "x"}, "beta_end 'x'"),
        ({"beta_end": 2.0}, "cannot be used"),
        ({"beta_schedule": ["linear"]}, "beta_schedule ['linear']"),
        ({"prediction_type": {}}, "prediction_type {}"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ({"rescale_betas_zero_snr": True}, "prediction eps says nothing"),
    ],
)
def test_what_our_process_cannot_be_is_said(tmp_path, change, message):
    pipeline_of(tmp_path / "theirs")
    change_json(tmp_path / "theirs/scheduler/scheduler_config.json", change)
    with pytest.raises(UserError, match=re.escape(message)):
        read_checkpoint(tmp_path / "theirs")


def test_a_scheduler_in_the_folder_itself_counts(tmp_path):
    """So the first pipelines were saved, and diffusers looks there too."""
    scheduler = diffusers.DDIMScheduler(
        500, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    pipeline_of(tmp_path / "theirs", scheduler)
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        (tmp_path / "theirs" / file).rename(tmp_path / "theirs" / Path(file).name)
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "theirs/unet" / weights).rename(tmp_path / "theirs" / weights)
    _, process, _ = load_for_inference(tmp_path / "theirs")
    assert (process["noise_steps"], process["noise_schedule"]) == (500, "cosine")
    assert process["prediction"] == "v"


def test_other_folders_and_schedulers(script, tmp_path):
    (tmp_path / "empty").mkdir()
    error = script("generate", "--weight_path", tmp_path / "empty", status=2).stderr
    assert "Is a directory, and none of diffusers" in error
    pipeline_of(tmp_path / "theirs", diffusers.DDPMScheduler(beta_schedule="sigmoid"))
    error = script("generate", "--weight_path", tmp_path / "theirs", status=2).stderr
    assert "beta_schedule 'sigmoid' is not supported" in error


# --- ONNX ---


@pytest.mark.export
def test_onnx_runs_in_onnxruntime(script, tmp_path):
    import onnxruntime

    script("export", DEMO, tmp_path / "net.onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    network, _, _ = load_for_inference(DEMO)
    for batch in (1, 2, 5):
        x, t = torch.randn(batch, 1, 28, 28), torch.randint(0, 1000, (batch,))
        labels = torch.arange(batch) * 2
        inputs = {"x": x.numpy(), "t": t.numpy(), "labels": labels.numpy()}
        (found,) = session.run(None, inputs)
        with torch.no_grad():
            assert np.abs(found - network(x, t, labels).numpy()).max() < 1e-4


def test_without_the_packages_the_command_is_named(tmp_path):
    script = (
        "import sys; sys.modules['onnxscript'] = None; sys.argv = ['export.py', *sys.argv[1:]];"
        "import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    command = [sys.executable, "-c", script, ROOT / "tools/export.py", DEMO, tmp_path / "a.onnx"]
    done = subprocess.run(
        [*map(str, command), "--format", "onnx"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install -r requirements-export.txt" in done.stderr
    shutil.rmtree(tmp_path)
