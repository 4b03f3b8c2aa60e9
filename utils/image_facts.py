"""Facts about images that several parts share. Standard library only."""

GREY_16 = "I;16"  # grey of 16 bits, in Pillow's word
TRANSPARENT = "RGBA"
LABEL_MAP = "P"  # each pixel the number of its label, as a palette or a grey file has it

# How many planes of 8 bits an image of each mode has: grey; colour; colour multiplied by the
# opacity, and the opacity; the high and the low byte of grey.
CHANNELS = {"L": 1, "RGB": 3, TRANSPARENT: 4, GREY_16: 2, LABEL_MAP: 1}

# How many channels a network sees of them.
NETWORK_CHANNELS = {**CHANNELS, GREY_16: 1}

# Those that a diffusion draws.
IMAGE_MODES = ("L", "RGB", TRANSPARENT, GREY_16)

# The modes that everything takes: an autoencoder and an upscaler take no others.
USUAL_MODES = ("L", "RGB")

COLOURS = {"L": "grey", "RGB": "colour"}  # what people call images of that mode

BRIGHTEST = 255.0  # of 8 bits
FEWEST_FOR_KID = 3  # images of a kind

SMALLEST_SIDE = 4  # of an image, in pixels
LARGEST_SIDE = 4096


def mode_of(channels: int) -> str:
    """The mode of images with so many planes. Raises ValueError where there is none."""
    for mode, count in CHANNELS.items():
        if count == channels:
            return mode
    raise ValueError(
        f"images have 1 (grey), 3 (RGB), 4 (RGBA) or 2 (16 bits) planes, not {channels}"
    )


def shown_mode(mode: str) -> str:
    """L or RGB: what a viewer shows of images of that mode, whose transparency lies on white."""
    return "L" if NETWORK_CHANNELS[mode] == 1 else "RGB"
