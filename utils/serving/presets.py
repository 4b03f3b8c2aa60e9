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
        "Quick look",
        "Some thousand images at 28 pixels, classes ignored: minutes on a laptop to first shapes.",
        {
            "image_size": "28",
            "conditional": False,
            "epochs": 5,
            "vis_interval_epochs": 1,
        },
    ),
    Preset(
        "Small folder",
        "A few hundred images of one kind at 64 pixels, mirrored too, with dropout against "
        "memorising.",
        {
            "image_size": "64",
            "conditional": False,
            "flip": True,
            "channels": 48,
            "channel_mult": "1,2,3,4",
            "dropout": 0.1,
            "epochs": 300,
            "batch_size": 16,
            "lr": 5e-4,
            "ema_decay": 0.999,
            "vis_interval_epochs": 25,
        },
    ),
    Preset(
        "Classes with guidance",
        "A folder with a folder per class, at 32 pixels; guidance makes the classes clearer.",
        {
            "image_size": "32",
            "conditional": True,
            "label_drop": 0.1,
            "cfg_scale": 2.0,
            "channels": 64,
            "blocks_per_level": 2,
            "epochs": 100,
            "batch_size": 64,
            "lr": 1e-3,
            "ema_decay": 0.999,
        },
    ),
    Preset(
        "Colour, 64 pixels",
        "Thousands of colour images without classes, on a GPU: 16 bits and a larger network.",
        {
            "image_size": "64",
            "mode": "RGB",
            "conditional": False,
            "channels": 96,
            "channel_mult": "1,2,3,4",
            "blocks_per_level": 2,
            "attention_levels": "-1,-2",
            "epochs": 200,
            "batch_size": 64,
            "lr": 3e-4,
            "ema_decay": 0.9995,
            "amp": True,
            "vis_interval_epochs": 20,
        },
    ),
)
