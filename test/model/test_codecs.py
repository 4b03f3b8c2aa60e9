"""Pixels survive the way in and out."""

import pytest
import torch

from model.codecs import build_codec


def test_pixels_survive_the_way_in_and_out():
    codec = build_codec({"name": "pixels"})
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = codec.encode(pixels)
    assert torch.equal(codec.decode(x), pixels)
    assert x.min() == -1 and x.max() == 1 and x.dtype == torch.float32
    assert codec.decode(torch.tensor([-3.0, 3.0, 1.004, -1.004])).tolist() == [0, 255, 255, 0]
    assert codec.shape((28, 30), 3) == (3, 28, 30)
    assert build_codec(codec.config).config == codec.config == {"name": "pixels"}


def test_an_unknown_codec():
    with pytest.raises(ValueError, match="codec 'vae' is unknown; known are pixels"):
        build_codec({"name": "vae"})
    with pytest.raises(ValueError, match="no option 'scale'"):
        build_codec({"name": "pixels", "scale": 2})
