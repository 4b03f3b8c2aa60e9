"""Enlarging images: those in memory, and files as they are.

upscaler    a network and the samples of images, in tiles
source      a file -> samples in its own colour space, profile, EXIF
output      which format can hold a picture; png_writer writes one strip by strip
file        one file, enlarged
folder      which files of a folder become which, by the rules of names; what is done already
"""

from utils.upscaling.upscaler import Upscaler

__all__ = ["Upscaler"]
