"""Networks of timm as features: built without their classifier, with weights that fit exactly."""

import importlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import UserError, name_list
from utils.evaluation.feature_weights import first_line
from utils.runs.files import read_checkpoint

HUB = "https://huggingface.co"
HUB_TIMEOUT = 10.0  # seconds


@dataclass
class TimmModel:
    """A network, and how timm's data configuration feeds it."""

    network: nn.Module
    label: str
    dimension: int
    input_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_timm_model(name: str, weights: Path | None, size: int | None) -> TimmModel:
    """The model `name` of timm, with its published weights from the user's cache (downloaded where
    they are not there) or those of a file. Raises UserError where there are none that fit.
    """
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        raise UserError(f"--features timm:{name}: timm {timm.__version__} has no such model")
    if weights is not None:
        network = _build(name, size, pretrained=False)
        _load_file(network, weights, name)
    else:
        network = _published(name, size)
    network.eval()
    data = resolve_model_data_config(network)
    height, width = (size, size) if size else data["input_size"][-2:]
    return TimmModel(
        network=network,
        label=name.partition(".")[0],
        dimension=_dimension(network, name, (data["input_size"][0], height, width)),
        input_size=(height, width),
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _build(name: str, size: int | None, pretrained: bool) -> Any:
    import timm

    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if size is None:
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError:  # a convolutional network takes any size
        return timm.create_model(name, **options)
    except Exception as error:
        if pretrained:  # perhaps the hub's client
            raise
        raise _does_not_fit(name, (size, size), error) from None


def _dimension(network: Any, name: str, shape: tuple[int, int, int]) -> int:
    """The length of its feature vectors, which not all networks say alike. Raises UserError where
    it does not take images of this shape.
    """
    try:
        with torch.no_grad():
            return network(torch.zeros(1, *shape)).shape[1]
    except Exception as error:
        raise _does_not_fit(name, shape[1:], error) from None


def _does_not_fit(name: str, size: tuple[int, int], error: Exception) -> UserError:
    height, width = size
    return UserError(
        f"timm:{name} takes no images of {height}x{width} ({first_line(error)}): --feature_size "
        "says another size"
    )


def _published(name: str, size: int | None) -> Any:
    """From the cache alone first: with no connection, the hub's client tries for a minute."""
    if size is not None:
        _build(name, size, pretrained=False)  # a size that does not fit is said as such
    try:
        with _hub_offline():
            return _build(name, size, pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        reason = first_line(error)
    unreachable = _why_unreachable(os.environ.get("HF_ENDPOINT", HUB))
    if unreachable is None:
        try:
            return _build(name, size, pretrained=True)
        except Exception as error:
            reason = first_line(error)
    else:
        reason = unreachable
    raise UserError(
        f"the weights of timm:{name} are not in this user's cache and could not be downloaded "
        f"({reason}): pass --feature_weights FILE"
    )


@contextmanager
def _hub_offline() -> Iterator[None]:
    """The hub's client asks its cache alone."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _why_unreachable(address: str) -> str | None:
    """Why nobody answers at an address; None where somebody does."""
    try:
        urllib.request.urlopen(address, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:  # an answer
        return None
    except (OSError, ValueError) as error:
        return f"{address}: {first_line(error)}"
    return None


def _load_file(network: Any, file: Path, name: str) -> None:
    """Every tensor of the network from the file; of what is left, only the classifier may be."""
    weights = read_checkpoint(file)["network"]
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        if adapt is not None:  # names of the original authors, position tables of another size
            weights = adapt(weights, network)
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except Exception as error:
        raise UserError(f"{file} does not fit timm:{name}: {first_line(error)}") from None
    classifiers = network.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    heads = tuple(f"{layer}." for layer in classifiers)
    unknown = [key for key in unexpected if not key.startswith(heads)]
    if missing:
        raise UserError(f"{file} does not fit timm:{name}: it lacks {name_list(missing, 3)}")
    if unknown:
        raise UserError(f"{file} does not fit timm:{name}: it also holds {name_list(unknown, 3)}")
