"""Latent mode as a user runs it: train an autoencoder, diffuse in its latents, generate."""

import os
import shutil
import signal
import subprocess
import sys

import diffusers
import pytest
import torch
from helpers import DEMO, ROOT, TINY, assert_equal_states, copy_some, metrics, write_masks
from PIL import Image

from model.codecs import LatentCodec, build_codec, frozen_autoencoder
from model.condition import beside_latents
from model.diffusion import GaussianDiffusion
from tools import train as train_script
from tools import train_autoencoder as train_autoencoder_script
from utils.data import load_image_set, read_image
from utils.data.conditions import pair
from utils.devices import Precision
from utils.generation import ImageGenerator, Sampling
from utils.ranks import Ranks
from utils.runs.autoencoders import read_autoencoder
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_checkpoint, save_checkpoint
from utils.training import latent_inputs as latent_inputs_module
from utils.training import run as run_module
from utils.training.diffusion_task import LatentDiffusionTask
from utils.training.latent_inputs import latent_inputs
from utils.training.resume import codec_differences

SMALL = ["--features", 8, "--blocks", 1, "--layers", 2, "--growth", 4, "--crop_size", 8]
AUTOENCODER = ["--block_out_channels", "8,8", "--norm_num_groups", 4, "--latent_channels", 2]
AUTOENCODER += ["--image_size", 16, "--batch_size", 8, "--epochs", 1, "--num_vis", 2]
LATENT = [*TINY, "--image_size", 16, "--flip", "--epochs", 2, "--lr_func", "constant"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory, script_server):
    """The run of an autoencoder with a factor of 2, trained for two steps."""
    folder = tmp_path_factory.mktemp("autoencoder")
    copy_some(folder / "images")
    command = [ROOT / "tools/train_autoencoder.py", "--dataset_path", folder / "images"]
    command += [*AUTOENCODER, "--run_name", "ae", "--result_path", folder, "--use_gpu", -1]
    done = script_server.run([str(part) for part in command], folder, 120)
    assert done.returncode == 0, done.stderr
    return folder / "ae"


@pytest.fixture
def autoencoder(trained_once, tmp_path):
    """Its file, in a run folder of this test's own."""
    shutil.copytree(trained_once, tmp_path / "results/ae")
    return tmp_path / "results/ae/ema_last.pt"


def test_an_autoencoder_s_run(images, tmp_path, script):
    options = ["--dataset_path", images, "--run_name", "ae", *AUTOENCODER, "--flip"]
    said = script("train_autoencoder", *options, "--val_fraction", 0.5, "--epochs", 2).stdout
    assert "latents     2 x 8,8: one number for 2 of the image's" in said
    assert "Held-out images: PSNR" in said and "(grey, 8 bits)." in said
    run = tmp_path / "results/ae"
    assert list((run / "samples").glob("*.png"))
    rows = metrics(run)
    assert all(float(row[name]) > 0 for row in rows for name in ("loss", "l1", "kl"))
    assert all(abs(float(row["ssim"])) <= 1 for row in rows)
    assert [row for row in rows if row["psnr"]]
    config = Checkpoint.read(run / "ema_last.pt").config
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 2
    assert min(config["latents_std"]) > 0
    assert config["training"]["ema_decay"] == 0.999


def test_an_autoencoder_s_batch_that_does_not_fit_is_split(images, tmp_path, monkeypatch, capsys):
    """The same result up to rounding, and a resumed run splits as before."""
    place = AUTOENCODER.index("--batch_size")
    options = [*AUTOENCODER[:place], *AUTOENCODER[place + 2 :], "--optim", "sgd", "--vis", "False"]
    options += ["--dataset_path", images, "--result_path", tmp_path, "--use_gpu", -1]

    def train(name, *more):
        argv = [str(word) for word in (*options, "--run_name", name, *more)]
        with pytest.raises(SystemExit) as stop:
            train_autoencoder_script.main(argv)
        assert stop.value.code == 0
        return capsys.readouterr().out

    def versions(name):
        contents = read_checkpoint(tmp_path / name / "ckpt_last.pt")
        return contents["versions"]["batch_size"], contents["versions"]["grad_accum"]

    assert "memory " not in train("at_once")
    assert versions("at_once") == (16, 1)
    monkeypatch.setattr(run_module, "free_memory", lambda device, processes: 3e6)
    assert "16 images per step in 4 passes of 4, as" in train("split")
    assert versions("split") == (4, 4)
    assert_equal_states(tmp_path / "at_once/ckpt_last.pt", tmp_path / "split/ckpt_last.pt", 1e-4)
    assert "GB are needed, and 0.0 GB may be taken" in train("given", "--batch_size", 16, "--plan")
    monkeypatch.undo()
    said = train("split", "--epochs", 2, "--resume")
    assert "4 passes of 4, as before" in said and "up to rounding" not in said
    assert versions("split") == (4, 4)
    train("eight", "--batch_size", 8)
    train("eight", "--epochs", 2, "--resume")
    assert versions("eight") == (8, 1)
    said = train("eight", "--epochs", 3, "--resume", "--grad_accum", 2)
    assert versions("eight") == (4, 2)


@pytest.mark.parametrize("name", ["train_autoencoder", "train_upscaler"])
def test_an_average_whose_length_is_a_share_of_the_run(images, tmp_path, script, name):
    """Then the decay that the script has otherwise does not count."""
    options = ["--dataset_path", images, "--run_name", "a", "--image_size", 12, "--epochs", 1]
    options += ["--vis", False, "--val_fraction", 0, "--ema_length", 0.2, "--batch_size", 4]
    of_script = {"train_autoencoder": [*AUTOENCODER, "--image_size", 12], "train_upscaler": SMALL}
    script(name, *of_script[name], *options)
    training = Checkpoint.read(tmp_path / "results/a/ema_last.pt").config["training"]
    assert training["ema_decay"] is None and training["ema_length"] == 0.2
    two = script(name, *options, "--ema_decay", 0.9, "--plan", status=2)
    assert "leave one of them out" in two.stderr


def test_the_statistics_are_those_of_draws_from_the_posteriors(images, autoencoder):
    checkpoint = Checkpoint.read(autoencoder)
    config = checkpoint.config
    network = build_codec_of(autoencoder).network
    files = sorted(images.rglob("*.png"))
    pixels = torch.stack([torch.tensor(read_image(file, (16, 16)))[..., 0] for file in files])
    mean, logvar = network.encode(pixels[:, None] / 127.5 - 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, *mean.shape, generator=generator)
    draws = (mean + (logvar / 2).exp() * noise).transpose(0, 2).flatten(1)
    for channel in range(2):
        assert abs(draws[channel].mean() - config["latents_mean"][channel]) < 2e-3
        assert abs(draws[channel].std() - config["latents_std"][channel]) < 2e-3


def build_codec_of(autoencoder) -> LatentCodec:
    stored = read_autoencoder(autoencoder)
    network = frozen_autoencoder(stored.network, stored.weights)
    return LatentCodec(network, stored.latents_mean, stored.latents_std)


def test_a_resumed_autoencoder_equals_one_without_a_break(images, tmp_path, script):
    options = ["--dataset_path", images, *AUTOENCODER, "--flip", "--lr_func", "constant"]
    script("train_autoencoder", *options, "--run_name", "whole", "--epochs", 2)
    script("train_autoencoder", *options, "--run_name", "cut", "--epochs", 1)
    script("train_autoencoder", *options, "--run_name", "cut", "--epochs", 2, "--resume")
    whole, cut = tmp_path / "results/whole", tmp_path / "results/cut"
    assert_equal_states(whole / "ckpt_last.pt", cut / "ckpt_last.pt")
    a, b = (Checkpoint.read(run / "ema_last.pt").config for run in (whole, cut))
    assert a["latents_mean"] == b["latents_mean"] and a["latents_std"] == b["latents_std"]


def test_train_generate_evaluate(images, autoencoder, tmp_path, script):
    for file in sorted((DEMO / "coat").iterdir())[:30]:  # enough to hold some out
        shutil.copy(file, images / "bag" / f"coat{file.name}")
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT]
    said = script("train", *options, "--run_name", "latent", "--val_fraction", 0.5).stdout
    assert "latents     2 x 8,8 of each image and its mirror, encoded once" in said
    assert "loss on held-out images" in said
    run = tmp_path / "results/latent"
    preview = Image.open(next((run / "samples").iterdir()))
    assert preview.height > 16 * 3

    weights = run / "ema_last.pt"
    (tmp_path / "results/ae").rename(tmp_path / "results/elsewhere")  # nothing else is needed
    script("generate", "--weight_path", weights, "--num_images", 3, "--sample_steps", 3)
    files = sorted((tmp_path / "results/generated").glob("0*.png"))
    assert [Image.open(file).size for file in files] == [(16, 16)] * 3
    assert Image.open(files[0]).text["clip_sample"] == "False"
    evaluated = script(
        *("evaluate", images, "--weight_path", weights, "--num_images", 4, "--sample_steps", 2),
        *("--features", "none", "--copies", images),
    )
    assert "copies      0 of 4" in evaluated.stdout


def test_nothing_clips_latents(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT]
    script("train", *options, "--run_name", "latent", "--vis", "False")
    checkpoint = Checkpoint.read(tmp_path / "results/latent/ema_last.pt")
    precision = Precision(torch.float32, torch.device("cpu"))
    sampling = Sampling("ddim", sample_steps=5, clip_sample=True)
    generator = ImageGenerator.from_checkpoint(checkpoint, sampling, precision)
    assert generator.sampler.clip_sample is False

    # Data of one point far outside [-1, 1]: the exact x0 comes back whole.
    def network(x, t, labels=None):
        alpha, sigma = (getattr(generator.sampler.levels, f)(t).to(x) for f in ("alpha", "sigma"))
        return (alpha * x - 3.5) / sigma  # v, where x0 is 3.5

    generator.network = network
    network.num_classes, network.training = 3, False
    network.eval = network.train = lambda *_: network
    last = list(generator.sampler.denoise(network, generator.sampler.start(2, (8, 8), 2, None)))
    assert (last[-1][0].x - 3.5).abs().max() < 1e-4


def test_a_resumed_run_equals_one_without_a_break(images, autoencoder, tmp_path, script):
    latent = [*LATENT, "--save_every_steps", 1, "--vis", "False"]
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *latent]
    script("train", *options, "--run_name", "whole")
    script("train", *options, "--run_name", "cut", "--epochs", 1)
    # From the cache or not, with or without the file of the autoencoder.
    shutil.rmtree(tmp_path / "results/ae")
    said = script("train", *options, "--run_name", "cut", "--resume", "--cache", "ram").stdout
    assert "encoded once" in said and "the checkpoint was made with" not in said
    whole, cut = tmp_path / "results/whole", tmp_path / "results/cut"
    assert_equal_states(whole / "ckpt_last.pt", cut / "ckpt_last.pt")
    again = ["--dataset_path", images, *latent, "--epochs", 3, "--resume", "--run_name", "cut"]
    assert "found in the cache" in script("train", *again).stdout
    at_each_use = script("train", *again, "--epochs", 4, "--cache", "none").stdout
    assert "encoded at each use" in at_each_use and "the same up to rounding" in at_each_use


# --- Steered by images ---


@pytest.fixture(params=["labels", "picture"])
def conditions(request, images, tmp_path):
    """Options of a run whose images, of which there are twice as many, are steered by masks, or by
    pictures: themselves, turned.
    """
    for file in sorted(images.rglob("*.png")):
        with Image.open(file) as picture:
            picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file.with_stem(f"{file.stem}b"))
    folder = tmp_path / "conditions"
    if request.param == "labels":
        write_masks(images, folder, labels=(2, 5))
    for file in images.rglob("*.png") if request.param == "picture" else []:
        target = folder / file.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as picture:
            picture.rotate(90).save(target)
    return ["--condition_path", folder, "--condition_kind", request.param]


def test_what_steers_lies_beside_the_latents(images, autoencoder, conditions, tmp_path, script):
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT, *conditions]
    said = script("train", *options, "--run_name", "a", "--val_fraction", 0.4).stdout
    assert "conditions  " in said and "latents  " in said
    checkpoint = Checkpoint.read(tmp_path / "results/a/ema_last.pt")
    assert checkpoint.condition["name"] in ("latent labels", "latent picture")
    assert (
        checkpoint.config["network"]["in_channels"] == 2 + 2 + 1
    )  # two labels, or channels of a latent
    weights = ["--weight_path", tmp_path / "results/a/ema_last.pt", "--sample_steps", 3]
    drawn = {}
    for scale in (0, 1):
        name = ["--generate_name", f"s{scale}", "--cfg_scale", scale]
        script("generate", *weights, "--condition", conditions[1], *name)
        files = sorted((tmp_path / f"results/s{scale}").rglob("*/*.png"))
        drawn[scale] = [file.read_bytes() for file in files]
    assert len(drawn[0]) == 26 and drawn[0] != drawn[1]


def test_a_steered_run_is_the_same_however_it_is_made(
    images, autoencoder, conditions, tmp_path, script
):
    """Without a break or with one; encoded once, or at each use."""
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT, *conditions]
    options += ["--vis", "False", "--log_interval", 1]
    script("train", *options, "--run_name", "whole")
    script("train", *options, "--run_name", "cut", "--epochs", 1)
    script("train", *options, "--run_name", "cut", "--resume", "--cache", "ram")
    whole, cut = tmp_path / "results/whole", tmp_path / "results/cut"
    assert_equal_states(whole / "ckpt_last.pt", cut / "ckpt_last.pt")
    script("train", *options, "--run_name", "each", "--cache", "none")
    kept, at_each_use = (metrics(tmp_path / "results" / name) for name in ("whole", "each"))
    for a, b in zip(kept, at_each_use, strict=True):
        assert abs(float(a["loss"]) - float(b["loss"])) < 1e-4
    plan = [*options, "--run_name", "p", "--plan"]
    assert "of each image and its mirror, found in the cache" in script("train", *plan).stdout
    assert "to be encoded in about" in script("train", *plan, "--cache", "ram").stdout


def test_a_mirrored_image_has_its_condition_mirrored(images, autoencoder, conditions, tmp_path):
    """What is stored of the mirror is what encoding the mirror gives."""
    stored = read_autoencoder(autoencoder)
    frozen = frozen_autoencoder(stored.network, stored.weights)
    codec = LatentCodec(frozen, [0.1, 0.2], [1.5, 0.5])
    found = load_image_set(images, (16, 16), True, cache="ram", quiet=True)
    paired = pair(found, conditions[1], conditions[3], "ram", True, found.mode)
    paired.condition = beside_latents(paired.condition, 2, 2)
    paired.condition.use(codec)
    inputs, _ = latent_inputs(paired.images, codec, True, "ram", Ranks(), paired)
    task = LatentDiffusionTask(
        GaussianDiffusion(), codec, False, flip=True, condition=paired.condition
    )
    places = range(5)
    batch = [torch.stack([inputs[i][0] for i in places]), None, None]
    pixels = torch.stack([paired[i][0] for i in places])
    for is_mirrored in (False, True):
        draws = {"mirrored": torch.full((5,), is_mirrored)}
        moments = task.moments(batch, draws)
        seen = pixels.flip(3) if is_mirrored else pixels
        wanted = [*codec.encode_moments(seen[:, :1]), paired.condition.encode(seen[:, 1:])]
        for one, two in zip(moments, wanted, strict=True):
            assert (one - two).abs().max() < 1e-5
    assert (wanted[2] - paired.condition.encode(pixels[:, 1:])).abs().max() > 0.1


def test_encoding_at_each_use_is_the_same(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT]
    options += ["--vis", "False", "--log_interval", 1]
    script("train", *options, "--run_name", "cached")
    said = script("train", *options, "--run_name", "uncached", "--cache", "none").stdout
    assert "encoded at each use" in said
    cached, uncached = (metrics(tmp_path / "results" / name) for name in ("cached", "uncached"))
    assert len(cached) == len(uncached) == 8
    for a, b in zip(cached, uncached, strict=True):
        assert abs(float(a["loss"]) - float(b["loss"])) < 1e-4


def test_another_autoencoder_is_a_change(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT]
    script("train", *options, "--run_name", "latent", "--vis", "False")
    contents = read_checkpoint(autoencoder)
    contents["ema"]["decoder.conv_out.bias"] += 0.01
    save_checkpoint(contents, autoencoder)
    changed = script("train", *options, "--run_name", "latent", "--resume", status=2)
    assert "the autoencoder" in changed.stderr and "--allow_changes" in changed.stderr


def test_files_that_do_not_fit(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, *LATENT, "--run_name", "x"]

    def refused(*more):
        return script("train", *options, *more, status=2).stderr

    assert "--latent needs --autoencoder_path" in refused("--latent")
    folder = autoencoder.parent
    assert f"is the folder of a run; name a file in it, such as {autoencoder}" in refused(
        "--autoencoder_path", folder
    )
    assert "No such file" in refused("--autoencoder_path", tmp_path / "missing.pt")
    odd = refused("--autoencoder_path", autoencoder, "--image_size", 15)
    assert "15,15: both must be multiples of 4" in odd
    odd = refused("--autoencoder_path", autoencoder, "--image_size", 18)
    assert "18,18: both must be multiples of 4" in odd  # of autoencoder and U-Net together
    assert "--latent False, but the autoencoder" in refused(
        "--latent", "False", "--autoencoder_path", autoencoder
    )
    demo = refused("--autoencoder_path", ROOT / "weight/demo.pt")
    assert "kind diffusion, but autoencoder is needed; it is for tools/generate.py" in demo
    generated = script("generate", "--weight_path", autoencoder, status=2).stderr
    assert "it is for tools/train.py --autoencoder_path" in generated


def test_a_checkpoint_without_its_autoencoder_says_so(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT]
    script("train", *options, "--run_name", "latent", "--vis", "False")
    file = tmp_path / "results/latent/ema_last.pt"
    contents = read_checkpoint(file)
    whole = contents.pop("codec")
    save_checkpoint(contents, file)
    missing = script("generate", "--weight_path", file, status=2).stderr
    assert "needs the weights of its autoencoder, and there are none" in missing
    whole["decoder.conv_out.bias"] += 1
    save_checkpoint({**contents, "codec": whole}, file)
    other = script("generate", "--weight_path", file, status=2).stderr
    assert "the weights of the autoencoder are others" in other


def write_diffusers_autoencoder(folder, channels):
    """With the structure of AUTOENCODER."""
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    network.save_pretrained(folder)
    return network


def test_an_autoencoder_starts_from_one_of_diffusers(images, tmp_path, script):
    network = write_diffusers_autoencoder(tmp_path / "vae", channels=1)
    options = ["--dataset_path", images, *AUTOENCODER, "--lr", 1e-12, "--run_name", "ae"]
    script("train_autoencoder", *options, "--pretrain", "--pretrain_path", tmp_path / "vae")
    found = read_checkpoint(tmp_path / "results/ae/ema_last.pt")["ema"]
    assert found.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert (found[name] - value).abs().max() < 1e-6
    whole = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    named = script("train", "--dataset_path", images, "--autoencoder_path", whole, status=2).stderr
    assert "is a part of a folder of diffusers; name the folder itself" in named


def test_an_autoencoder_of_diffusers(images, tmp_path, script):
    """Without statistics of its own (one factor is not enough): they are measured."""
    network = write_diffusers_autoencoder(tmp_path / "vae", channels=3)
    options = ["--dataset_path", images, "--autoencoder_path", tmp_path / "vae", *LATENT]
    script("train", *options, "--run_name", "latent", "--vis", "False")
    checkpoint = Checkpoint.read(tmp_path / "results/latent/ema_last.pt")
    codec = build_codec(checkpoint.config["codec"], checkpoint.codec)
    assert checkpoint.channels == 3  # grey images, but the autoencoder takes colour
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    theirs = network.encode(pixels.float() / 127.5 - 1).latent_dist.mean
    assert (codec.denormalise(codec.encode(pixels)) - theirs).abs().max() < 1e-4


def run_with_kills(script, options, results, name, kills):
    """The script, killed after each of these steps and resumed; 0: not killed."""
    base = [sys.executable, ROOT / "test/helper_kill.py", *options, "--run_name", name]
    base += ["--result_path", results, "--use_gpu", -1, "--save_every_steps", 1, "--vis", "False"]
    for kill_at in kills:
        resume = ["--resume"] if (results / name).exists() else []
        process = subprocess.run(
            [str(part) for part in (*base, *resume)],
            env={**os.environ, "SCRIPT": script, "KILL_AT_STEP": str(kill_at)},
        )
        assert process.returncode == (-signal.SIGKILL if kill_at else 0)


def test_a_plan_encodes_a_batch_only(images, autoencoder, tmp_path, script, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    contents = read_checkpoint(autoencoder)
    del contents["config"]["latents_mean"]  # measured on some of the images
    save_checkpoint(contents, autoencoder)
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT, "--plan"]
    asked = []

    def posterior(self, pixels):
        asked.append(len(pixels))
        return original(self, pixels)

    original = LatentCodec.posterior
    monkeypatch.setattr(LatentCodec, "posterior", posterior)
    argv = [*options, "--result_path", tmp_path / "results", "--use_gpu", -1, "--epochs", 2]
    with pytest.raises(SystemExit) as stop:
        train_script.main(list(map(str, argv)))
    assert stop.value.code == 0
    # Statistics, an image and its mirror, of a batch of 4; and twice all images, to time it
    assert sum(asked) == 3 * 4 + 2 * 2 * 13
    assert not list((tmp_path / "cache").rglob("*.latents"))

    # The run itself is as long as the plan says
    planned = steps_line(capsys.readouterr().out)
    said = script("train", *options[:-1], "--run_name", "a", "--epochs", 2).stdout
    assert planned == steps_line(said) and "= 2 epochs x " in planned


def test_encoding_is_a_part_of_the_minutes(images, autoencoder, tmp_path, monkeypatch, capsys):
    """In a plan, which does not do it, and for the choice of the network, which comes before it."""
    options = ["--dataset_path", images, "--autoencoder_path", autoencoder, "--image_size", 16]
    options += ["--minutes", 100, "--vis", "False", "--use_gpu", -1, "--result_path", tmp_path]

    def plan(seconds):
        monkeypatch.setattr(latent_inputs_module, "seconds_of_encoding", lambda *_: seconds)
        with pytest.raises(SystemExit) as stop:
            train_script.main([*map(str, options), "--plan"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        preset = next(line for line in said.splitlines() if line.startswith("preset "))
        return preset.split()[1], int(steps_line(said).split()[1].replace(",", ""))

    assert plan(100 * 60.0) == ("tiny", 10)  # as few as a run can have
    preset, steps = plan(0.0)
    assert preset != "tiny" and steps > 1000


def steps_line(said):
    return next(line for line in said.splitlines() if line.startswith("steps "))


def test_what_pretrain_says_of_other_inputs(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, *LATENT, "--vis", "False", "--epochs", 1]
    latent = ["--autoencoder_path", autoencoder]
    script("train", *options, *latent, "--run_name", "a")
    weights = tmp_path / "results/a/ema_last.pt"
    pretrain = ["--pretrain", "--pretrain_path", weights, "--plan"]
    assert "the weights were trained on" not in script("train", *options, *latent, *pretrain).stdout
    contents = read_checkpoint(autoencoder)
    contents["ema"]["decoder.conv_out.bias"] += 0.01
    save_checkpoint(contents, tmp_path / "other.pt")
    said = script("train", *options, "--autoencoder_path", tmp_path / "other.pt", *pretrain).stdout
    assert "the weights were trained on the latents of autoencoder" in said


def test_the_run_s_own_autoencoder_takes_over(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, *LATENT, "--vis", "False", "--run_name", "a"]
    script("train", *options, "--autoencoder_path", autoencoder)
    before = Checkpoint.read(tmp_path / "results/a/ema_last.pt").config["codec"]
    contents = read_checkpoint(autoencoder)
    contents["config"]["latents_mean"] = [5.0, 5.0]  # the same weights, measured elsewhere
    save_checkpoint(contents, autoencoder)
    more = ["--resume", "--epochs", 3, "--autoencoder_path"]
    script("train", *options, *more, autoencoder)
    assert Checkpoint.read(tmp_path / "results/a/ema_last.pt").config["codec"] == before
    said = script("train", *options, *more, tmp_path / "typo.pt").stdout
    assert "typo.pt is not there: the run's own is used" in said
    pixels = ["--dataset_path", images, *LATENT, "--vis", "False", "--run_name", "pixels"]
    script("train", *pixels)
    refused = script("train", *pixels, "--resume", "--latent", status=2).stderr
    assert "--latent needs --autoencoder_path" in refused


def test_hostile_codecs_are_refused_in_one_sentence(images, autoencoder, tmp_path, script):
    options = ["--dataset_path", images, *LATENT, "--vis", "False", "--run_name", "a"]
    script("train", *options, "--autoencoder_path", autoencoder)
    file = tmp_path / "results/a/ckpt_last.pt"
    whole = read_checkpoint(file)
    codec, weights = whole["config"]["codec"], whole["codec"]
    bad_codecs = [
        {key: value for key, value in codec.items() if key != "latents_mean"},
        {**codec, "latents_std": "x"},
        {**codec, "network": {**codec["network"], "norm_num_groups": torch.ones(2)}},
        {**codec, "network": {**codec["network"], "name": "unet"}},
    ]
    name = "decoder.conv_out.bias"
    bad_weights = [
        {**weights, name: [1, 2]},
        {**weights, 7: weights[name]},
        {**weights, name: weights[name] * float("nan")},
        {key: value for key, value in weights.items() if key != name},
    ]
    cases = [(bad, weights) for bad in bad_codecs] + [(codec, bad) for bad in bad_weights]
    (tmp_path / "results/a/ckpt_prev.pt").unlink()
    for bad_codec, bad in cases:
        contents = {**whole, "config": {**whole["config"], "codec": bad_codec}, "codec": bad}
        save_checkpoint(contents, file)
        said = script("train", *options, "--resume", status=2).stderr
        assert said.startswith("error: ") and said.count("\n") == 1
    # Without the weights in it, the file that they came from will do.
    save_checkpoint({**whole, "codec": None}, file)
    script("train", *options, "--resume", "--epochs", 3, "--autoencoder_path", autoencoder)


@pytest.mark.fault
def test_kill_9_and_resume_changes_nothing(images, autoencoder, tmp_path):
    """Of an autoencoder, also after its last step, before its statistics are measured; and of a
    diffusion on latents.
    """
    training = ["--dataset_path", images, *AUTOENCODER, "--epochs", 2, "--flip"]
    run_with_kills("train_autoencoder", training, tmp_path, "whole_ae", [0])
    run_with_kills("train_autoencoder", training, tmp_path, "cut_ae", [1, 3, 4, 0])
    latent = ["--dataset_path", images, "--autoencoder_path", autoencoder, *LATENT]
    run_with_kills("train", latent, tmp_path, "whole", [0])
    run_with_kills("train", latent, tmp_path, "cut", [2, 3, 7, 8, 0])
    for a, b in (("whole_ae", "cut_ae"), ("whole", "cut")):
        assert_equal_states(tmp_path / a / "ckpt_last.pt", tmp_path / b / "ckpt_last.pt")
        one, two = (Checkpoint.read(tmp_path / name / "ema_last.pt").config for name in (a, b))
        assert one == two


@pytest.mark.fault
def test_two_processes_follow_one(images, autoencoder, tmp_path):
    base = ["--dataset_path", images, "--result_path", tmp_path, "--use_gpu", -1, "--vis", "False"]
    for name, spread in (("one", [8]), ("two", [4, "--distributed"])):
        command = [ROOT / "test/helper_float64.py", *base, *LATENT, "--run_name", name]
        command += ["--autoencoder_path", autoencoder, "--batch_size", *spread]
        subprocess.run([sys.executable, *map(str, command)], check=True, timeout=120)
    one, two = (read_checkpoint(tmp_path / name / "ckpt_last.pt") for name in ("one", "two"))
    for key, value in one["network"].items():
        assert (value - two["network"][key]).abs().max() < 1e-10, key


@pytest.mark.fault
def test_two_processes_train_an_autoencoder_like_one(images, tmp_path):
    for name, spread in (("one", [8]), ("two", [4, "--distributed"])):
        command = [ROOT / "tools/train_autoencoder.py", "--dataset_path", images, *AUTOENCODER]
        command += ["--result_path", tmp_path, "--run_name", name, "--use_gpu", -1]
        command += ["--epochs", 4, "--batch_size", *spread]
        subprocess.run([sys.executable, *map(str, command)], check=True, timeout=120)
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert abs(float(a["loss"]) - float(b["loss"])) < 1e-3
    a, b = (read_checkpoint(tmp_path / name / "ema_last.pt") for name in ("one", "two"))
    for x, y in zip(a["config"]["latents_mean"], b["config"]["latents_mean"], strict=True):
        assert abs(x - y) < 1e-2


def test_what_a_diffusion_sees_in_words():
    pixels, grey = {"name": "pixels"}, {"name": "grey16"}
    two, other = ({"name": "joint", "image_channels": 1, "values": [0, last]} for last in (1, 2))
    assert codec_differences(pixels, pixels) == codec_differences(two, two) == []
    assert "on pixels, this run is on grey of 16 bits" in codec_differences(pixels, grey)[0]
    assert "masks of the labels 0, 1, this run" in codec_differences(two, other)[0]
