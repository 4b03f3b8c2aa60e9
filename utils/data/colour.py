"""From the colours that a file's ICC profile describes to sRGB, as a colour-managed viewer does."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACE_OF_MODE = {"L": "GRAY", "I;16": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
ROUNDING = 1  # levels: a profile that moves no colour further is sRGB itself
NO_OPTIMISATION = ImageCms.Flags.NOOPTIMIZE  # else dark grey is interpolated coarsely


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image (mode L, I;16, RGB, CMYK or LAB, without alpha) in sRGB: L where it was grey, else
    RGB.

    I;16 must span 0..65535. A profile that is damaged, or made for another kind of colours, is
    ignored, as viewers do. Without a profile, CMYK is converted as Pillow does.
    """
    if image.mode == "LAB":
        return _applied(image, _lab_transform())
    if profile:
        try:
            return _managed(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a picture is worth more than its profile
    if image.mode == "I;16":
        return reduced_to_8_bits(image)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def reduced_to_8_bits(image: Image.Image) -> Image.Image:
    """I;16 of 0..65535 -> L, rounded."""
    samples = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(samples.round().astype(np.uint8))


def _managed(image: Image.Image, profile: bytes) -> Image.Image:
    """The image through its profile. ValueError where the profile is not for this kind of image."""
    space = _profile_space(profile)
    is_grey = image.mode in ("L", "I;16")
    if is_grey and space == "RGB":  # grey pixels tagged with a screen's profile
        grey = reduced_to_8_bits(image) if image.mode == "I;16" else image
        return _applied(grey.convert("RGB"), _transform(profile, "RGB")).getchannel("G")
    if space != SPACE_OF_MODE[image.mode]:
        raise ValueError(f"a profile for {space}, an image in {image.mode}")
    transform = _transform(profile, image.mode)
    if transform is None:
        return reduced_to_8_bits(image) if image.mode == "I;16" else image
    shown = _applied(image, transform)
    return shown.getchannel("G") if is_grey else shown


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if transform is None:
        return image
    shown = Image.new("RGB", image.size)
    transform.apply(image, shown)
    return shown


@lru_cache(maxsize=64)
def _profile_space(profile: bytes) -> str:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB; None where that changes nothing but roundings."""
    flags = NO_OPTIMISATION if mode in ("L", "I;16") else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb(), mode, "RGB", flags=flags
    )
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    before = np.asarray(probe if mode == "RGB" else _eight_bits(probe).convert("RGB"))
    after = np.asarray(_applied(probe, transform))
    change = np.abs(before.astype(int) - after.astype(int)).max()
    return None if change <= ROUNDING else transform


def _probe(mode: str) -> Image.Image:
    """Colours from all over the range."""
    levels = np.arange(256)
    if mode == "L":
        return Image.fromarray(levels.astype(np.uint8)[None])
    if mode == "I;16":
        return Image.fromarray((levels * 257).astype(np.uint16)[None])
    steps = np.arange(0, 256, 15).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(grid)


def _eight_bits(image: Image.Image) -> Image.Image:
    return reduced_to_8_bits(image) if image.mode == "I;16" else image


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB")
