"""Grids, animations and image files."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont

from utils import font_files, fonts, pictures
from utils.data import read_image
from utils.errors import UserError
from utils.pictures import image_grid, save_animation, save_image, to_picture


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine that has no font but Pillow's own."""
    monkeypatch.setattr(font_files, "font_folders", lambda: [])
    monkeypatch.setenv("PATH", "")  # no fontconfig
    fonts.forget_fonts()
    yield
    monkeypatch.undo()
    fonts.forget_fonts()


def ink(picture, box):
    """Whether anything is drawn within (left, top, right, bottom)."""
    return np.asarray(picture.crop(box)).min() < 128


@pytest.mark.parametrize("channels", [1, 3])
def test_to_picture_keeps_the_pixels(channels):
    pixels = noise(channels, 5, 7)
    picture = to_picture(pixels)
    assert picture.mode == {1: "L", 3: "RGB"}[channels] and picture.size == (7, 5)
    back = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    assert np.array_equal(back, pixels.numpy())


@pytest.mark.parametrize("wrong", [torch.rand(1, 4, 4), noise(5, 4, 4), noise(4, 4)])
def test_what_is_no_picture(wrong):
    with pytest.raises(ValueError, match=r"\(C,H,W\) uint8 with 1 to 4 planes, not"):
        to_picture(wrong)
    with pytest.raises(ValueError, match=r"\(N,C,H,W\) uint8"):
        image_grid(wrong, 2)


def test_the_place_of_each_image():
    pixels = noise(5, 3, 20, 28)
    picture = np.asarray(image_grid(pixels, 3))
    assert picture.shape == (2 * 42, 3 * 58, 3)  # enlarged twice, and two pixels between them
    for place in range(5):
        y, x = place // 3 * 42, place % 3 * 58
        cell = picture[y : y + 40 : 2, x : x + 56 : 2]
        assert np.array_equal(cell, pixels[place].permute(1, 2, 0).numpy())
    assert (picture[42:, 2 * 58 :] == 255).all()  # the sixth place is empty


def test_latin_names_look_as_they_always_did():
    """The text by the calls of Pillow that the grids of earlier versions made."""
    pixels = torch.full((2, 1, 48, 48), 255, dtype=torch.uint8)
    font = ImageFont.load_default(size=12)
    expected = Image.new("L", (2 * 98, 96 + 2 + 16), "white")
    pen = ImageDraw.Draw(expected)
    for column, text in enumerate(("boot 7", "T-shirt 8")):
        pen.text((column * 98 + 48, 104), text, fill="black", font=font, anchor="mm")
    drawn = image_grid(pixels, 2, captions=["boot 7", "T-shirt 8"])
    assert drawn.tobytes() == expected.tobytes()

    margin = int(font.getlength("trouser")) + 10
    expected = Image.new("L", (margin + 66, 2 * 66), "white")
    pixels = pixels.new_full((2, 1, 64, 64), 255)
    pen = ImageDraw.Draw(expected)
    for row, text in enumerate(("bag", "trouser")):
        pen.text((4, row * 66 + 32), text, fill="black", font=font, anchor="lm")
    assert image_grid(pixels, 1, ["bag", "trouser"]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(28, 28), (96, 8), (8, 96), (300, 300)])
def test_captions_stay_in_the_room_they_have(size):
    height, width = size
    white = torch.full((3, 1, *size), 255, dtype=torch.uint8)
    names = ["W" * 300, "", "W" * 300]
    picture = image_grid(white, 3, captions=names, caption_ends=["12", "", "14"])
    step = picture.width // 3
    assert step >= 64
    assert ink(picture, (0, 0, step, picture.height))
    assert not ink(picture, (step, 0, 2 * step, picture.height))  # nothing from its neighbours


def test_row_names_stay_in_the_margin_and_in_their_rows():
    white = torch.full((3, 1, 4, 64), 255, dtype=torch.uint8)
    picture = image_grid(white, 1, row_names=["W" * 300, "", "bag"])
    assert picture.width <= 240 + 10 + 66 and picture.height >= 3 * 16
    step = picture.height // 3
    assert ink(picture, (0, 0, 250, step)) and not ink(picture, (0, step, 316, 2 * step - 4))
    assert not ink(picture, (picture.width - 66, 0, picture.width, picture.height))


def test_names_that_no_font_can_draw_become_numbers(no_fonts):
    pixels = noise(2, 1, 28, 28)
    names, numbers = ["鞋", "boot"], ["class 0", "class 1"]
    with_fallbacks = image_grid(pixels, 2, captions=names, fallbacks=numbers)
    assert with_fallbacks.tobytes() == image_grid(pixels, 2, captions=["class 0", "boot"]).tobytes()
    rows = image_grid(pixels, 1, row_names=names, fallbacks=numbers)
    assert rows.tobytes() == image_grid(pixels, 1, ["class 0", "boot"]).tobytes()
    question_mark = image_grid(pixels, 2, captions=["?", "boot"])
    assert image_grid(pixels, 2, captions=names).tobytes() == question_mark.tobytes()


def test_the_end_of_a_caption_is_kept(no_fonts):
    pixels = noise(1, 1, 28, 28)
    drawn = image_grid(pixels, 1, captions=["鞋"], fallbacks=["class 0"], caption_ends=["41"])
    assert drawn.tobytes() == image_grid(pixels, 1, captions=["class 0 41"]).tobytes()
    alone = image_grid(pixels, 1, caption_ends=["41"])
    assert alone.tobytes() == image_grid(pixels, 1, captions=["41"]).tobytes()


def test_texts_that_do_not_fit_the_images():
    pixels = noise(4, 1, 8, 8)
    for texts in ({"row_names": ["a"]}, {"captions": ["a"] * 3}, {"caption_ends": ["1"]}):
        with pytest.raises(ValueError, match="for . places"):
            image_grid(pixels, 2, **texts)
    with pytest.raises(ValueError, match="not for both"):
        image_grid(pixels, 2, ["a"] * 2, ["b"] * 4, fallbacks=["c"] * 4)


# --- Files ---


@pytest.mark.parametrize("ending", ["png", "PNG", "webp", "jpg", "jpeg"])
def test_each_format(tmp_path, ending):
    picture = to_picture(noise(3, 16, 16))
    file = tmp_path / f"鞋.{ending}"
    save_image(picture, file, {"class": "鞋", "weights": "a\udcff.pt", "seed": 7})
    with Image.open(file) as read:
        assert read.size == (16, 16)
        if ending not in ("jpg", "jpeg"):
            assert np.array_equal(np.asarray(read.convert("RGB")), np.asarray(picture))
        if ending.lower() == "png":
            assert read.text == {"class": "鞋", "weights": "a\\udcff.pt", "seed": "7"}


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    picture = Image.new("L", (20_000, 4))
    with pytest.raises(UserError, match="cannot write .*wide.webp: .*16383"):
        save_image(picture, tmp_path / "wide.webp")
    assert not (tmp_path / "wide.webp").exists()
    with pytest.raises(UserError, match="cannot write .*: No such file or directory"):
        save_image(picture, tmp_path / "missing" / "a.png")
    with pytest.raises(UserError, match="no image format has the ending '.xyz'"):
        save_image(picture, tmp_path / "a.xyz")


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_animations(tmp_path, ending):
    frames = [(noise(3, 1, 28, 28) // (n + 1), noise(3, 1, 28, 28)) for n in range(4)]
    file = tmp_path / f"film.{ending}"
    save_animation(frames, file)
    with Image.open(file) as film:
        assert film.n_frames == 4 and film.info["loop"] == 0
        assert film.size == (2 * 3 * 58 + 12, 58)
        durations = []
        for number in range(4):
            film.seek(number)
            film.load()
            durations.append(film.info["duration"])
            if number == 2:
                left = image_grid(frames[2][0], 3)
                shown = np.asarray(film.convert("L"))[:, : left.width].astype(int)
                assert np.abs(shown - np.asarray(left)).max() <= 2
        assert durations[0] == 80 and durations[-1] == 2000


def test_large_images_are_filmed_smaller():
    """The two grids of an animation side by side stay within what films take."""
    assert pictures.frame_factor(16, (64, 64)) == 1
    assert pictures.frame_factor(16, (256, 256)) == 1
    assert pictures.frame_factor(16, (1024, 1024)) == 4
    assert pictures.frame_factor(1, (2048, 512)) == 1
    assert pictures.frame_factor(16, (4096, 8)) == 8


def test_a_film_that_the_format_does_not_take_is_an_error(tmp_path):
    wide = torch.zeros(1, 1, 4, 16_384, dtype=torch.uint8)
    with pytest.raises(UserError, match="cannot write .*film.webp"):
        save_animation([(wide, wide)] * 2, tmp_path / "film.webp")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_images_say_how_they_were_made(tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    save_image(to_picture(noise(3, 8, 8)), file, {"seed": 3, "class": "鞋\n", "sampler": "ddim"})
    with Image.open(file) as image:
        if ending == "png":
            assert image.text["seed"] == "3" and image.text["sampler"] == "ddim"
            return
        description = image.getexif()[ExifTags.Base.ImageDescription]
    text = description.encode("latin-1").decode() if isinstance(description, str) else description
    lines = text.splitlines()
    assert lines[0] == "seed: 3" and lines[2] == "sampler: ddim" and "鞋" in lines[1]


def test_settings_that_a_jpeg_does_not_take_are_left_out(tmp_path):
    file = tmp_path / "a.jpg"
    save_image(to_picture(noise(3, 8, 8)), file, {"class": "x" * 70_000})
    assert read_image(file, (8, 8)).shape == (8, 8, 3)


def test_animations_that_cannot_be_written(tmp_path):
    frames = [(noise(1, 1, 8, 8), noise(1, 1, 8, 8))]
    with pytest.raises(UserError, match="cannot write"):
        save_animation(frames, tmp_path / "missing" / "film.webp")
    with pytest.raises(ValueError, match="at least one"):
        save_animation([], tmp_path / "film.webp")
    assert pictures.LAST_FRAME_MILLISECONDS == 2000
