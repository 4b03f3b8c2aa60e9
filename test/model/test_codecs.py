"""Pixels survive the way in and out; latents are what the autoencoder makes of them, normalised."""

import copy
import math

import pytest
import torch
from torch import nn

from model import codecs
from model.blended_tiles import in_tiles, side_weights, tile_starts
from model.codecs import LatentCodec, build_codec, weights_hash
from model.networks import build_network
from model.networks.autoencoder import ResBlock

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 0.7]


def small_network(**options):
    torch.manual_seed(0)
    small = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    return build_network({"name": "autoencoder", **small, **options})


def small_codec(**options) -> LatentCodec:
    return LatentCodec(small_network(**options), MEAN, STD)


def random_pixels(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def smooth_pixels(height: int, width: int, period: int = 64) -> torch.Tensor:
    """(1,3,H,W) uint8: waves across, down and diagonally."""
    y = torch.arange(height)[:, None].expand(height, width)
    x = torch.arange(width)[None, :].expand(height, width)
    waves = torch.sin(2 * math.pi * torch.stack([x, y, x + y]) / period)
    return ((0.8 * waves + 1) * 127.5).round().to(torch.uint8)[None]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


# --- Pixels ---


def test_pixels_survive_the_way_in_and_out():
    codec = build_codec({"name": "pixels"})
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = codec.encode(pixels)
    assert torch.equal(codec.decode(x), pixels)
    assert x.min() == -1 and x.max() == 1 and x.dtype == torch.float32
    assert codec.decode(torch.tensor([-3.0, 3.0, 1.004, -1.004])).tolist() == [0, 255, 255, 0]
    assert codec.shape((28, 30), 3) == (3, 28, 30)
    assert build_codec(codec.config).config == codec.config == {"name": "pixels"}
    assert codec.is_bounded and codec.to("cpu") is codec


def test_an_unknown_codec():
    with pytest.raises(
        ValueError, match="codec 'vae' is unknown; known are pixels, grey16, joint, latents"
    ):
        build_codec({"name": "vae"})
    with pytest.raises(ValueError, match=r"codec \[\] is unknown"):
        build_codec({"name": []})
    with pytest.raises(ValueError, match="no option 'scale'"):
        build_codec({"name": "pixels", "scale": 2})


# --- Latents: what goes in and comes out ---


def expected_moments(codec: LatentCodec, pixels: torch.Tensor):
    """Written out here, in float64."""
    network = copy.deepcopy(codec.network).double()
    mean, logvar = network.encode(pixels.double() / 127.5 - 1)
    shift, scale = (torch.tensor(n, dtype=torch.float64)[:, None, None] for n in (MEAN, STD))
    return (mean - shift) / scale, (0.5 * logvar).exp() / scale


def expected_pixels(codec: LatentCodec, pixels: torch.Tensor) -> torch.Tensor:
    """Of the network alone, without any normalising: decode(encode(x))."""
    network = copy.deepcopy(codec.network).double()
    x = network.decode(network.encode(pixels.double() / 127.5 - 1)[0])
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_are_the_normalised_posterior(channels, dtype):
    torch.set_default_dtype(dtype)
    try:
        codec = small_codec(in_channels=channels)
        pixels = random_pixels(3, channels, 12, 20)
        mean, std = codec.encode_moments(pixels)
        latents = codec.encode(pixels)
        again = codec.decode(latents)
    finally:
        torch.set_default_dtype(torch.float32)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for found, expected in zip((mean, std), expected_moments(codec, pixels), strict=True):
        assert found.dtype == dtype and not found.requires_grad and not found.is_inference()
        assert difference(found, expected) < tolerance
    assert torch.equal(latents, mean) and latents.shape == (3, 4, 6, 10)
    assert again.dtype == torch.uint8
    assert difference(again, expected_pixels(codec, pixels)) <= (dtype == torch.float32)


def test_latents_of_the_training_images_have_mean_0_and_deviation_1():
    network = small_network()
    pixels = random_pixels(8, 3, 16, 16)
    raw = LatentCodec(network, [0.0] * 4, [1.0] * 4).encode(pixels)
    codec = LatentCodec(network, raw.mean((0, 2, 3)).tolist(), raw.std((0, 2, 3)).tolist())
    z = codec.encode(pixels)
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
    assert (z.std((0, 2, 3)) - 1).abs().max() < 1e-5


SPOILED = {
    "mean left out going in": ("normalise", lambda codec, x: x / codec.std),
    "std left out going in": ("normalise", lambda codec, x: x - codec.mean),
    "mean left out coming out": ("denormalise", lambda codec, z: z * codec.std),
    "std left out coming out": ("denormalise", lambda codec, z: z + codec.mean),
}


@pytest.mark.parametrize("mistake", [None, *SPOILED])
def test_a_normalisation_on_one_side_would_be_seen(mistake, monkeypatch):
    """The way in and out is the network's own; with each of the four mistakes it is not."""
    if mistake:
        monkeypatch.setattr(LatentCodec, *SPOILED[mistake])
    codec, pixels = small_codec(), random_pixels(2, 3, 16, 16)
    found = difference(codec.decode(codec.encode(pixels)), expected_pixels(codec, pixels))
    assert found > 3 if mistake else found <= 1


def test_nothing_is_clipped_before_the_pixels():
    codec = small_codec()
    z = 20 * torch.randn(1, 4, 4, 4)
    assert not codec.is_bounded
    assert difference(codec.normalise(codec.denormalise(z)), z) < 1e-4
    x = codec.network.decode(codec.denormalise(z))
    expected = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert difference(codec.decode(z), expected) <= 1
    with torch.no_grad():
        codec.network.decoder.conv_out.bias.fill_(9.0)
    assert codec.decode(z).min() == 255  # clamped, not wrapped


def test_an_image_does_not_depend_on_its_batch(monkeypatch):
    codec, pixels = small_codec(), random_pixels(5, 3, 16, 24)
    together = codec.encode(pixels)
    decoded = codec.decode(together)
    monkeypatch.setattr(codecs, "TILE_SIDE", 30)  # two images a call
    assert codecs.images_per_call(16, 24) == 2 and not codecs.is_tiled(16, 24)
    assert difference(codec.encode(pixels), together) < 1e-5
    assert difference(codec.decode(together), decoded) <= 1
    alone = torch.cat([codec.encode(image[None]) for image in pixels])
    assert difference(alone, together) < 1e-5
    assert codec.encode(pixels[:0]).shape == (0, 4, 8, 12)


def test_the_network_computes_in_its_own_numbers():
    codec, pixels = small_codec(), random_pixels(2, 3, 16, 16)
    expected = codec.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(codec.encode(pixels), expected) < 1e-5
        assert difference(codec.decode(expected), codec.decode(expected.double())) <= 1
    codec.network.bfloat16()
    found = codec.encode(pixels)
    assert found.dtype == torch.float32 and 0 < difference(found, expected) < 0.3
    assert codec.decode(found.bfloat16()).shape == pixels.shape


def test_sizes_and_channels_that_do_not_fit():
    codec = small_codec()
    assert codec.downsample_factor == 2 and codec.shape((12, 20), 3) == (4, 6, 10)
    with pytest.raises(ValueError, match="image size 13,20: both must be multiples of 2"):
        codec.shape((13, 20), 3)
    with pytest.raises(ValueError, match="image size 12,21: both must be multiples of 2"):
        codec.encode(random_pixels(1, 3, 12, 21))
    with pytest.raises(ValueError, match="takes images of 3 channels, not 1"):
        codec.encode(random_pixels(1, 1, 12, 20))
    with pytest.raises(ValueError, match="latents of 4 channels, not 3"):
        codec.decode(torch.zeros(1, 3, 4, 4))


# --- Tiles ---


@pytest.mark.parametrize("tile, overlap", [(64, 16), (10, 4), (7, 3), (4, 1), (5, 2)])
def test_tiles_cover_a_side_and_overlap(tile, overlap):
    for length in range(1, 130):
        starts = tile_starts(length, tile, overlap)
        ends = [min(start + tile, length) for start in starts]
        assert starts[0] == 0 and ends[-1] == length
        for end, start in zip(ends[:-1], starts[1:], strict=True):
            assert end - start >= overlap
        total = torch.zeros(length)
        for start, end in zip(starts, ends, strict=True):
            total[start:end] += side_weights(end - start, start, length, overlap)
        assert total.min() > 0


def test_the_blend_is_linear():
    """Two tiles of 10 with 8 pixels in common: 2 of context on each side, 4 that go over."""
    first, second = side_weights(10, 0, 12, 8), side_weights(10, 2, 12, 8)
    fading = [0.875, 0.625, 0.375, 0.125]
    assert first.tolist() == [1.0] * 4 + fading + [0.0] * 2
    assert second.tolist() == first.flip(0).tolist()


def test_tiles_of_a_local_function_are_that_function():
    x = torch.randn(2, 3, 44, 100)
    pooled = in_tiles(lambda x: nn.functional.avg_pool2d(x, 4), x, tile=6, overlap=2, unit_in=4)
    assert difference(pooled, nn.functional.avg_pool2d(x, 4)) < 1e-6
    enlarged = in_tiles(
        lambda x: nn.functional.interpolate(x, scale_factor=2), x, tile=16, overlap=4, unit_out=2
    )
    assert difference(enlarged, nn.functional.interpolate(x, scale_factor=2)) < 1e-6


def without_norms(network):
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())


@pytest.mark.parametrize("size", [(192, 200), (64, 300), (130, 128)])
def test_tiles_equal_the_whole_where_the_network_sees_no_further(size, monkeypatch):
    """Without norms and attention this network looks 24 pixels far, which is the context: a quarter
    of the overlap. So tiles change nothing but rounding.
    """
    codec, pixels = small_codec(mid_block_add_attention=False), smooth_pixels(*size)
    without_norms(codec.network)
    whole = codec.encode_moments(pixels)
    z = whole[0]
    images = codec._images(z)
    monkeypatch.setattr(codecs, "TILE_SIDE", 128)
    monkeypatch.setattr(codecs, "TILE_OVERLAP", 96)
    assert codecs.is_tiled(*size)
    for found, expected in zip(codec.encode_moments(pixels), whole, strict=True):
        assert difference(found, expected) < 1e-5
    assert difference(codec._images(z), images) < 1e-5
    assert codec.decode(z).shape == pixels.shape


def test_tiles_are_near_the_whole_on_a_smooth_image(monkeypatch):
    """With norms, which see the tile. The waves repeat within each tile, so its statistics are near
    those of the whole. The residual branches are damped to a tenth, since those of random weights
    make noise of small differences; trained ones do not. On average the difference is then below
    2% of the contrast, and at most, at the image's border, a fifth.
    """
    codec, pixels = small_codec(mid_block_add_attention=False), smooth_pixels(192, 200)
    with torch.no_grad():
        for module in codec.network.modules():
            if isinstance(module, ResBlock):
                module.conv2.weight *= 0.1
    z = codec.encode(pixels)
    images = codec._images(z)
    monkeypatch.setattr(codecs, "TILE_SIDE", 128)
    monkeypatch.setattr(codecs, "TILE_OVERLAP", 32)
    for found, whole in ((codec.encode(pixels), z), (codec._images(z), images)):
        error = (found - whole).abs() / whole.std()
        assert 0 < error.mean() < 0.02 and error.max() < 0.2


# --- From a config ---


def test_a_config_and_weights_rebuild_the_codec():
    codec, pixels = small_codec(), random_pixels(2, 3, 16, 16)
    assert set(codec.config) == {"name", "network", "latents_mean", "latents_std", "hash"}
    assert codec.config["latents_std"] == STD and len(codec.config["hash"]) == 16
    again = build_codec(codec.config, copy.deepcopy(codec.network.state_dict()))
    assert again.config == codec.config
    assert torch.equal(again.encode(pixels), codec.encode(pixels))
    assert not any(parameter.requires_grad for parameter in again.network.parameters())
    assert not again.network.training and again.to("cpu") is again


def test_the_hash_is_of_the_numbers_and_the_config():
    network = small_network()
    weights, config = network.state_dict(), network.config
    expected = weights_hash(weights, config)
    assert weights_hash(dict(reversed(weights.items())), config) == expected
    assert weights_hash({k: v.double() for k, v in weights.items()}, config) == expected
    halves = {k: v.bfloat16() for k, v in weights.items()}
    wide = {k: v.float() for k, v in halves.items()}
    assert weights_hash(halves, config) == weights_hash(wide, config) != expected
    changed = {k: v.clone() for k, v in weights.items()}
    changed["quant_conv.bias"][0] += 1e-6
    assert weights_hash(changed, config) != expected
    assert weights_hash(weights, {**config, "act_fn": "relu"}) != expected


def test_weights_that_are_not_those_of_the_config():
    codec = small_codec()
    weights = dict(codec.network.state_dict())
    with pytest.raises(ValueError, match="needs the weights of its autoencoder"):
        build_codec(codec.config)
    other = {**weights, "quant_conv.bias": weights["quant_conv.bias"] + 1}
    with pytest.raises(ValueError, match="others than those .* not '" + codec.config["hash"]):
        build_codec(codec.config, other)
    wrong = [
        {key: value for key, value in weights.items() if key != "quant_conv.bias"},
        {**weights, "more": torch.zeros(1)},
        {**weights, "quant_conv.bias": torch.zeros(9)},
        {**weights, "quant_conv.bias": torch.zeros(8, dtype=torch.int64)},
        {**weights, "quant_conv.bias": [0.0] * 8},
        {**weights, "quant_conv.bias": torch.zeros(8, device="meta")},
    ]
    for bad in wrong:
        with pytest.raises(ValueError, match="1 are missing, unexpected or of another shape"):
            build_codec(codec.config, bad)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latents_mean": [0.0] * 3}, "latents_mean is one number for each of 4 latent channels"),
        ({"latents_mean": 0.0}, "latents_mean is one number"),
        ({"latents_mean": [0.0, 0.0, 0.0, "0"]}, "latents_mean is one number"),
        ({"latents_mean": [0.0, 0.0, 0.0, math.nan]}, "latents_mean must be finite"),
        ({"latents_mean": [0, 0, 0, 10**400]}, "latents_mean must be finite"),
        ({"latents_std": [1.0, 1.0, 1.0, math.inf]}, "latents_std must be finite"),
        ({"latents_std": [1.0, 1.0, 1.0, 0.0]}, "latents_std must be above 0"),
        ({"latents_std": [1.0, 1.0, 1.0, -1.0]}, "latents_std must be above 0"),
        ({"network": {"name": "unet"}}, "the network of latents is an autoencoder"),
        ({"network": None}, "the network of latents is an autoencoder"),
        ({"network": {"name": "autoencoder", "latent_channels": 0}}, "latent_channels"),
        ({"scale": 1}, "no option 'scale'"),
        ({"hash": None}, "not None"),
    ],
)
def test_configs_out_of_bounds(change, message):
    codec = small_codec()
    with pytest.raises(ValueError, match=message):
        build_codec({**codec.config, **change}, codec.network.state_dict())


def test_a_config_that_is_not_whole():
    with pytest.raises(ValueError, match="needs 'network', 'latents_mean', 'latents_std', 'hash'"):
        build_codec({"name": "latents"}, {})
