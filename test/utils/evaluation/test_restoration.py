"""PSNR and SSIM of restored images: the conventions, against scikit-image."""

import numpy as np
import pytest
import skimage
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model.metrics import luma_601
from model.modules.resample import bicubic
from utils.evaluation.restoration import (
    Convention,
    baseline_in_words,
    restoration_in_words,
    restoration_scores,
)


@pytest.fixture(scope="module")
def pair():
    """A photograph and the same with noise, (H,W,3) uint8."""
    photo = skimage.data.chelsea()[50:114, 100:180]
    noise = np.random.default_rng(0).normal(0, 8, photo.shape)
    return photo, (photo + noise).round().clip(0, 255).astype(np.uint8)


def as_batch(image):
    return torch.tensor(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize("border", [0, 4])
def test_scores_in_rgb_are_scikit_image_s(pair, border):
    psnr, ssim = restoration_scores(as_batch(pair[1]), as_batch(pair[0]), Convention(border))
    height, width = pair[0].shape[:2]
    a, b = (image[border : height - border, border : width - border] for image in pair)
    assert abs(psnr - peak_signal_noise_ratio(a, b, data_range=255)) < 1e-9
    theirs = structural_similarity(
        *(image.astype(float) for image in (a, b)),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert abs(ssim - theirs) < 1e-6


def test_luma_is_y_of_bt_601(pair):
    ours = luma_601(as_batch(pair[0]))[0, 0].numpy()
    assert np.abs(ours - rgb2ycbcr(pair[0])[..., 0]).max() < 1e-9
    psnr, _ = restoration_scores(as_batch(pair[1]), as_batch(pair[0]), Convention(2, luma=True))
    a, b = (rgb2ycbcr(image)[2:-2, 2:-2, 0] for image in pair)
    assert abs(psnr - peak_signal_noise_ratio(a, b, data_range=255)) < 1e-9
    black, white = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 255)
    assert abs(luma_601(black) - 16) < 1e-9 and abs(luma_601(white) - 235) < 1e-9


def test_equal_images_and_small_ones():
    images = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    psnr, ssim = restoration_scores(images, images, Convention())
    assert psnr.tolist() == [100, 100] and (ssim - 1).abs().max() < 1e-12
    _, ssim = restoration_scores(images, images, Convention(border=1))
    assert ssim.isnan().all()


def test_words():
    scores = {"psnr": 24.834, "bicubic_psnr": 21.8, "ssim": 0.9}
    assert restoration_in_words(scores) == "PSNR 24.83 dB (bicubic 21.80 dB), SSIM 0.9000"
    assert baseline_in_words(scores) == "bicubic interpolation has PSNR 21.80 dB"
    assert str(Convention(2)) == "RGB, 8 bits, without a border of 2 pixels"
    assert str(Convention(luma=True)) == "Y of BT.601, 8 bits"


# --- Bicubic interpolation ---


def imresize(image, size):
    """MATLAB's imresize in float64, for one channel (H,W): Keys' cubic with a = -1/2, widened by
    the factor where the image shrinks. Weights that fall outside the image are left out.
    """

    def matrix(length, new):
        factor = new / length
        width = min(1.0, factor)
        centres = (np.arange(new) + 0.5) / factor - 0.5
        distance = np.abs(centres[:, None] - np.arange(length)[None]) * width
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        return weights / weights.sum(1, keepdims=True)

    rows, columns = image.shape
    return matrix(rows, size[0]) @ image @ matrix(columns, size[1]).T


@pytest.mark.parametrize("size", [(32, 40), (21, 26), (16, 20), (128, 160), (192, 240)])
def test_bicubic_is_matlab_s_imresize_and_torch_s_default_is_not(pair, size):
    image = pair[0][..., 0].astype(np.float64)
    wanted = imresize(image, size)
    tensor = torch.tensor(image)[None, None]
    ours = bicubic(tensor, size)[0, 0].numpy()
    assert np.abs(ours - wanted).max() < 1e-9
    plain = torch.nn.functional.interpolate(tensor, size, mode="bicubic")[0, 0].numpy()
    apart = 10 * np.log10(255**2 / np.square(plain - wanted).mean())
    assert 20 < apart < 50  # dB
