"""Enlarging images: those in memory, and files as they are.

upscaler    a network and the samples of images, in tiles
"""

from utils.upscaling.upscaler import Upscaler

__all__ = ["Upscaler"]
