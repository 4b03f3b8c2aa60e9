"""Sets of options to begin with. Each gives what differs from the defaults of tools/train.py."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    name: str
    about: str  # one sentence: what it is for, and what it needs
    values: dict[str, Any]


PRESETS = (
    Preset(
        "A few minutes",
        "To first shapes, at 32 pixels; the network is chosen for the time there is.",
        {"image_size": "32", "minutes": 8},
    ),
    Preset(
        "An hour",
        "At 64 pixels; the network is chosen for the time there is.",
        {"image_size": "64", "minutes": 60},
    ),
    Preset(
        "Small folder",
        "A few hundred images of one kind at 64 pixels, mirrored too; varied at random against "
        "memorising, where they are fewer than 1,000.",
        {
            "image_size": "64",
            "conditional": "False",
            "flip": True,
            "epochs": 300,
            "batch_size": 16,
            "vis_interval_epochs": 25,
        },
    ),
    Preset(
        "Classes with guidance",
        "A folder with a folder per class, at 32 pixels; guidance makes the classes clearer.",
        {"image_size": "32", "conditional": "True", "cfg_scale": 2.0, "minutes": 60},
    ),
    Preset(
        "A night on a GPU",
        "Thousands of colour images at 64 pixels, with the network that DDPM had.",
        {"image_size": "64", "mode": "RGB", "preset": "base", "minutes": 600},
    ),
)
