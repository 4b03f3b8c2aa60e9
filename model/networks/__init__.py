"""The networks, one registry per kind. `build_network(network.config)` rebuilds a network."""

import inspect
from collections.abc import Collection

from torch import nn

from model.networks.autoencoder import Autoencoder
from model.networks.config import check_image_size
from model.networks.cspdarkunet import CSPDarkUNet
from model.networks.edsr import EDSR
from model.networks.rdn import RDN
from model.networks.unet import UNet

__all__ = [
    "AUTOENCODERS",
    "DENOISERS",
    "EDSR",
    "NETWORKS",
    "RDN",
    "UPSCALERS",
    "Autoencoder",
    "CSPDarkUNet",
    "UNet",
    "build_network",
    "check_image_size",
    "checkpoint_activations",
]

DENOISERS: dict[str, type[nn.Module]] = {"unet": UNet, "cspdarkunet": CSPDarkUNet}
UPSCALERS: dict[str, type[nn.Module]] = {"rdn": RDN, "edsr": EDSR}
AUTOENCODERS: dict[str, type[nn.Module]] = {"autoencoder": Autoencoder}

# Every network that a checkpoint can name, of whatever kind.
NETWORKS: dict[str, type[nn.Module]] = {**DENOISERS, **UPSCALERS, **AUTOENCODERS}


def build_network(config: dict) -> nn.Module:
    """A network from a plain dict: "name" chooses the class, the other keys are its arguments.

    Every argument has a default. Raises ValueError for an unknown name or key.
    """
    arguments = dict(config)
    name = arguments.pop("name", "unet")
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown; known are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[name]).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
    unknown = [repr(key) for key in arguments if key not in known]
    if unknown and not takes_all:
        raise ValueError(
            f"network {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return NETWORKS[name](**arguments)


def checkpoint_activations(network: nn.Module, levels: Collection[int]) -> None:
    """Let a network keep no activations of these levels for the backward pass.

    Raises ValueError for a level that it does not have, and for a network that cannot do it.
    """
    if not levels:
        return
    if not hasattr(network, "checkpoint_activations"):
        raise ValueError(f"a {type(network).__name__} keeps all its activations")
    network.checkpoint_activations(levels)  # type: ignore[operator]
