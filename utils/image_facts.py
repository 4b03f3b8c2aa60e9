"""Facts about images that several parts share. Standard library only."""

# How many channels an image of each mode has: grey or colour.
CHANNELS = {"L": 1, "RGB": 3}

SMALLEST_SIDE = 4  # of an image, in pixels
LARGEST_SIDE = 4096


def mode_of(channels: int) -> str:
    """The mode of images with so many channels. Raises ValueError where there is none."""
    for mode, count in CHANNELS.items():
        if count == channels:
            return mode
    raise ValueError(f"images have 1 (grey) or 3 (RGB) channels, not {channels}")
