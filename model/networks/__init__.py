"""The denoising networks. `build_network(network.config)` makes the same network again."""

import inspect

from torch import nn

from model.networks.cspdarkunet import CSPDarkUNet
from model.networks.unet import UNet, check_image_size

__all__ = ["NETWORKS", "CSPDarkUNet", "UNet", "build_network", "check_image_size"]

NETWORKS = {"unet": UNet, "cspdarkunet": CSPDarkUNet}


def build_network(config: dict) -> nn.Module:
    """A network from a plain dict: "name" chooses the class, the other keys are its arguments (all
    have defaults).

    Raises ValueError for an unknown name or key.
    """
    options = dict(config)
    name = options.pop("name", "unet")
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown; known are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[name]).parameters
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"network {name!r} has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        )
    return NETWORKS[name](**options)
