"""On a CUDA device: the same numbers as on a CPU, and every script from end to end.

The lines that these run are those of the CPU's tests; what is looked at here is what only a GPU can
get wrong: its kernels, its number formats, and which device a tensor lies on.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import DEMO, ROOT, TINY, copy_some, metrics
from PIL import Image

from model.codecs import PixelCodec
from model.modules.norm_act import SILU, norm_act
from model.networks import build_network
from model.samplers import SAMPLERS, build_sampler
from utils.benchmarks.own_steps import build_loop, process, random_pixels
from utils.devices import choose_device, choose_precision, prepare_for_training
from utils.generation import load_for_inference
from utils.ranks import Ranks
from utils.runs.checkpoint import Checkpoint
from utils.training.diffusion_task import DiffusionTask
from utils.training.muon import Muon, matrices_of
from utils.training.prefetch import PreparedBatches

pytestmark = pytest.mark.gpu

WEIGHT = ROOT / "weight" / "demo.pt"
SIZE = (28, 28)

# Of an image's range, -1..1: what fp32 may round on the way through ten network calls.
ROUNDING = 2e-3


@pytest.fixture(autouse=True)
def full_fp32():
    """TF32 off, whatever a test before this one has set."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def script_on_gpu(tmp_path):
    """script_on_gpu("train", "--epochs", 1, ...) as a user calls it, on the first GPU."""

    def run(name: str, *args: object, status: int = 0) -> str:
        command = [sys.executable, ROOT / "tools" / f"{name}.py", *args]
        if name.startswith("train") or name in ("generate", "evaluate"):
            command += ["--result_path", tmp_path / "results"]
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run


def gpu() -> torch.device:
    return choose_device(0, Ranks())


def losses(run) -> np.ndarray:
    return np.array([float(row["loss"]) for row in metrics(run)])


# --- The same numbers as on a CPU ---


@pytest.mark.parametrize("architecture", ["unet", "cspdarkunet"])
def test_a_network_computes_the_same(architecture):
    config = {"name": architecture, "in_channels": 3, "num_classes": 4, "channels": 32}
    torch.manual_seed(0)
    network = build_network(config).eval()
    for weight in network.parameters():  # the last layers start at zero
        torch.nn.init.normal_(weight, std=0.05)
    x = torch.randn(4, 3, 32, 32)
    t = torch.tensor([0, 10, 500, 999])
    labels = torch.tensor([0, 1, 2, -1]).clamp(min=0)
    with torch.no_grad():
        on_cpu = network(x, t, labels)
        device = gpu()
        placed = network.to(device)
        rows = [value.to(device) for value in (x, t, labels)]
        on_gpu = placed(*rows)
        assert on_gpu.device.type == "cuda"
        scale = on_cpu.abs().max()
        assert (on_gpu.cpu() - on_cpu).abs().max() <= 1e-4 * scale

        precision, _ = choose_precision("auto", device)
        with precision.autocast():
            in_bf16 = precision.place(placed)(*rows)
    assert precision.dtype == torch.bfloat16
    assert (in_bf16.float().cpu() - on_cpu).abs().max() <= 0.05 * scale


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_s_image_is_the_same(name):
    """Noise is drawn on the host, so that an image belongs to its seed on every device."""
    images = []
    for device in (torch.device("cpu"), gpu()):
        network, config, _ = load_for_inference(WEIGHT)
        sampler = build_sampler(name, config, sample_steps=10, eta=1.0, device=device)
        images.append(
            sampler.sample(
                network.to(device),
                6,
                SIZE,
                channels=1,
                labels=range(6),
                cfg_scale=1.5,
                seeds=range(3, 9),
            ).cpu()
        )
    assert (images[0] - images[1]).abs().max() <= ROUNDING


def test_muon_moves_weights_as_on_a_cpu():
    moved = []
    for device in (torch.device("cpu"), gpu()):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.Conv2d(32, 16, 1))
        network = network.double().to(device)
        optimizer = Muon(network, 0.1, (0.9, 0.99), 0.01)
        for step in range(3):
            for weight in network.parameters():
                chance = torch.Generator().manual_seed(step)
                gradient = torch.randn(weight.shape, generator=chance, dtype=torch.float64)
                weight.grad = gradient.to(device)
            optimizer.step()
        assert len(matrices_of(network)) == 2
        moved.append([weight.detach().cpu() for weight in network.parameters()])
    for one, two in zip(*moved, strict=True):
        assert (one - two).abs().max() <= 1e-9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("amp", [False, True])
def test_recorded_steps_are_those_that_are_launched_one_by_one(optimizer, amp):
    """To the bit with AdamW, with all that is drawn: dropout on the device, the rest from outside.
    Muon's rounds in bf16 blow up what a product rounds, whose kernels may be others in a recording.
    """
    device = gpu()
    prepare_for_training(device)
    torch.backends.cudnn.benchmark = False  # which may choose other convolutions each time
    torch.backends.cudnn.deterministic = True
    task = DiffusionTask(process(), PixelCodec(), conditional=True, flip=True)
    config = {"name": "unet", "in_channels": 3, "num_classes": 4, "channels": 32, "dropout": 0.2}
    precision, _ = choose_precision(amp, device)
    pixels = random_pixels((16, 3, 32, 32))
    found = []
    for recorded in (False, True):
        torch.manual_seed(0)
        network = precision.place(build_network(config))
        start = all_weights(network)
        batches = [
            (pixels.roll(number, 0), torch.arange(16) % 4, torch.arange(16)) for number in range(12)
        ]
        loader = PreparedBatches(batches, task.draw, device, 0, 0)
        loop = build_loop(task, loader, network, precision, optimizer, recorded=recorded)
        assert (loop.recorded is not None) == recorded
        loop.schedule = replace(loop.schedule, learning_rate=lambda step: 1e-3 / (step + 1))
        for _ in range(10):
            loop.take_step()
        loader.close()
        found.append((all_weights(network) - start, loop.meter.flush(10)))
    (plain, rows), (replayed, others) = found
    assert len({row["loss"] for row in rows}) == 10
    bound = 0.2 if optimizer == "muon" else 1e-6
    assert (plain - replayed).norm() <= bound * plain.norm()
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in others], rel=1e-2)


def all_weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("is_modulated", [False, True])
def test_norm_and_silu_as_one_operation(is_modulated):
    """Under autocast, as between two convolutions of a network on a GPU."""
    device = gpu()
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 16).to(device)
    x = torch.randn(3, 16, 8, 8, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    more = [torch.randn(3, 16, 1, 1, device=device, dtype=torch.bfloat16) for _ in range(2)]
    leaves = [value.requires_grad_() for value in ([x, *more] if is_modulated else [x])]

    def in_three(x, scale=None, shift=None):
        h = norm(x)
        h = h if scale is None else torch.addcmul(shift, h, scale)
        return torch.nn.functional.silu(h).to(x.dtype)

    found = []
    for function in (lambda *values: norm_act(norm, SILU, *values), in_three):
        with torch.autocast("cuda", torch.bfloat16):
            out = function(*leaves)
        grad = torch.ones_like(out) / 3
        asked = [*leaves, norm.weight, norm.bias]
        found.append([out, *torch.autograd.grad(out, asked, grad)])
    for one, two in zip(*found, strict=True):
        assert one.dtype == two.dtype
        assert (one - two).abs().max() <= 1e-2 * two.abs().max()


# --- Scripts ---


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(images, tmp_path, script_on_gpu):
    common = ["--dataset_path", images, *TINY, "--conditional", True, "--lr_func", "constant"]
    script_on_gpu("train", *common, "--epochs", 4, "--run_name", "whole")
    script_on_gpu("train", *common, "--epochs", 2, "--run_name", "parts")
    script_on_gpu("train", *common, "--epochs", 4, "--run_name", "parts", "--resume")
    whole, parts = (losses(tmp_path / "results" / name) for name in ("whole", "parts"))
    assert len(whole) == len(parts) == 16
    assert np.abs(whole - parts).max() <= 1e-3 * whole.max()


@pytest.mark.parametrize(
    "options",
    [
        ["--amp", "False", "--optim", "adamw"],
        ["--optim", "muon", "--amp", "auto"],
        ["--checkpoint_activations", "0,1", "--dropout", "0.1", "--amp", "auto"],
        ["--augment", "0.5", "--flip", "--balance", "--grad_accum", "2"],
        ["--network", "cspdarkunet", "--channels", "16"],
        ["--noise_schedule", "flow", "--ema_snapshots", "2"],
        ["--compile", "--amp", "auto"],
        ["--cuda_graph", "False", "--amp", "auto"],
        ["--cuda_graph", "True", "--dropout", "0.1", "--grad_accum", "2"],
    ],
    ids=lambda options: options[0].removeprefix("--"),
)
def test_training_with(options, images, tmp_path, script_on_gpu):
    """Losses as on the CPU, up to what the number format rounds; and images from the weights."""
    common = ["--dataset_path", images, *TINY, "--epochs", 2, *options]
    said = script_on_gpu("train", *common, "--run_name", "gpu")
    assert re.search(r"network .* on cuda", said), said
    script_on_gpu("train", *common, "--run_name", "cpu", "--use_gpu", -1)
    on_gpu, on_cpu = (losses(tmp_path / "results" / name) for name in ("gpu", "cpu"))
    assert len(on_gpu) == len(on_cpu) >= 4
    assert np.abs(on_gpu - on_cpu).max() <= 0.05 * on_cpu.max()
    weight = tmp_path / "results" / "gpu" / "ema_last.pt"
    script_on_gpu("generate", "--weight_path", weight, "--num_images", 3, "--sample_steps", 4)
    assert len(list((tmp_path / "results" / "generated").glob("0*.png"))) == 3


def test_fp16_scales_its_loss(images, tmp_path, script_on_gpu, monkeypatch):
    """What GPUs without bf16 do: taken here by saying that this one has none."""
    monkeypatch.setattr("utils.devices.BF16_CAPABILITY", (99, 0))
    precision, _ = choose_precision(True, gpu())
    assert precision.dtype == torch.float16 and precision.scaler().is_enabled()
    driver = (
        "import sys; import utils.devices as d; d.BF16_CAPABILITY = (99, 0);"
        "import tools.train as t; t.opt.run_script(t.main)"
    )
    words = [sys.executable, "-c", driver, *TINY, "--amp", "True", "--epochs", "3"]
    words += ["--dataset_path", str(images), "--result_path", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "float16 on cuda" in done.stdout
    assert np.isfinite(losses(tmp_path / "demo")).all()
    assert Checkpoint.read(tmp_path / "demo" / "ckpt_last.pt").scaler["scale"] > 0


def test_memory_that_is_exhausted_is_said_and_saved(images, tmp_path):
    """The first step fits, the evaluation's batch does not."""
    driver = (
        "import sys, torch; torch.cuda.set_per_process_memory_fraction(0.002);"
        "import tools.train as t; t.opt.run_script(t.main)"
    )
    words = [sys.executable, "-c", driver, "--image_size", "256", "--batch_size", "64"]
    words += ["--dataset_path", str(images), "--result_path", str(tmp_path), "--epochs", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode not in (0, -9)
    assert "memory" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_process_group_of_one(images, tmp_path, script_on_gpu):
    common = ["--dataset_path", images, *TINY, "--epochs", 1]
    script_on_gpu("train", *common, "--run_name", "alone")
    script_on_gpu("train", *common, "--run_name", "nccl", "--distributed", "--world_size", 1)
    alone, nccl = (losses(tmp_path / "results" / name) for name in ("alone", "nccl"))
    assert np.abs(alone - nccl).max() <= 1e-3 * alone.max()


def test_latents(images, tmp_path, script_on_gpu):
    tiny = ["--block_out_channels", "8,8", "--norm_num_groups", 4, "--latent_channels", 2]
    tiny += ["--image_size", 16, "--batch_size", 8, "--epochs", 1, "--num_vis", 2]
    script_on_gpu("train_autoencoder", "--dataset_path", images, *tiny, "--run_name", "ae")
    autoencoder = tmp_path / "results" / "ae" / "ema_last.pt"
    options = [*TINY, "--image_size", 16, "--epochs", 1, "--autoencoder_path", autoencoder]
    script_on_gpu("train", "--dataset_path", images, *options, "--run_name", "latent")
    weight = tmp_path / "results" / "latent" / "ema_last.pt"
    script_on_gpu("generate", "--weight_path", weight, "--num_images", 2)
    with Image.open(next((tmp_path / "results" / "generated").glob("0*.png"))) as picture:
        assert picture.size == (16, 16)


def test_upscaling(tmp_path, script_on_gpu):
    """Trained, and a picture enlarged alike on both devices."""
    photo = next((DEMO / "boot").iterdir())
    images = copy_some(tmp_path / "images")
    small = ["--features", 8, "--blocks", 1, "--layers", 2, "--growth", 4, "--batch_size", 8]
    small += ["--image_size", 24, "--crop_size", 16, "--num_vis", 1, "--epochs", 1]
    script_on_gpu("train_upscaler", "--dataset_path", images, *small, "--run_name", "sr")
    weight = tmp_path / "results" / "sr" / "ema_last.pt"
    larger = []
    for number in (0, -1):
        out = tmp_path / f"larger{number}.png"
        script_on_gpu("upscale", photo, out, "--weight_path", weight, "--use_gpu", number)
        with Image.open(out) as picture:
            larger.append(np.asarray(picture).astype(int))
    assert larger[0].shape == larger[1].shape == (56, 56)
    assert np.abs(larger[0] - larger[1]).max() <= 1


@pytest.mark.parametrize(
    "options",
    [
        ["--sample", "ddpm", "--sample_steps", "20"],
        ["--sample", "unipc", "--cfg_scale", "2", "--cfg_interval", "0.1,2"],
        ["--sample", "plms", "--animate", "webp"],
        ["--image_size", "56", "--amp"],
        ["--interpolate", "3,4", "--class_name", "boot"],
        ["--upscale", str(ROOT / "weight" / "upscaler_x2.pt")],
    ],
    ids=lambda options: options[0].removeprefix("--") + options[1],
)
def test_generating_with(options, tmp_path, script_on_gpu):
    script_on_gpu("generate", "--num_images", 3, "--sample_steps", 5, *options)
    assert len(list((tmp_path / "results" / "generated").glob("0*.png"))) >= 3


def test_inpainting_keeps_what_is_known(tmp_path, script_on_gpu):
    photo = tmp_path / "boot.png"
    shutil.copy(next((DEMO / "boot").iterdir()), photo)
    mask = np.zeros(SIZE, np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--init_image", photo, "--mask", tmp_path / "mask.png", "--num_images", 2]
    script_on_gpu("generate", *options, "--sample_steps", 5)
    original = np.asarray(Image.open(photo))
    files = sorted((tmp_path / "results" / "generated").glob("0*.png"))
    assert len(files) == 2
    for file in files:
        made = np.asarray(Image.open(file))
        assert np.array_equal(made[mask == 0], original[mask == 0])
        assert not np.array_equal(made[mask > 0], original[mask > 0])


def test_copies_are_found(images, script_on_gpu):
    said = script_on_gpu("evaluate", images, images, "--features", "none", "--copies", images)
    assert "13 of 13" in said, said


def test_training_settings_are_those_of_cuda():
    prepare_for_training(gpu())
    assert torch.backends.cudnn.benchmark and torch.backends.cudnn.allow_tf32
