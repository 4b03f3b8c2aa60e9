"""From folders of real images to batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import StepSampler, build_loader, load_image_set, read_image, steps_per_epoch
from utils.errors import UserError

SIZE = (28, 28)


def gradient(h=40, w=60):
    """A grey picture with structure, (h,w) uint8."""
    return (np.linspace(0, 255, w)[None] * np.linspace(0.3, 1, h)[:, None]).round().astype(np.uint8)


def read(tmp_path, image, name="a.png", size=(40, 60), **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name, size)


# --- Every kind of file ---


def test_modes_that_keep_their_pixels(tmp_path):
    grey = gradient()
    colour = np.stack([grey, grey.T.repeat(2, 0)[:40, :40].repeat(2, 1)[:, :60], 255 - grey], -1)
    for array, image in [
        (np.stack([grey] * 3, -1), Image.fromarray(grey)),
        (np.stack([grey] * 3, -1), Image.fromarray(grey.astype(np.uint16) * 257)),  # 16 bits
        (colour, Image.fromarray(colour)),
        (colour, Image.fromarray(colour).convert("CMYK")),
    ]:
        suffix = "tif" if image.mode == "CMYK" else "png"
        assert np.abs(read(tmp_path, image, f"a.{suffix}").astype(int) - array).max() <= 1
    palette = Image.fromarray(grey).quantize(16)
    assert np.array_equal(read(tmp_path, palette), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(grey).convert("1")
    assert set(np.unique(read(tmp_path, bilevel))) == {0, 255}


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = read(tmp_path, image)
    assert pixels[5, 5].tolist() == [255, 255, 255] and pixels[0, 0].tolist() == [0, 0, 255]
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1
    palette = Image.fromarray(np.zeros((40, 60), np.uint8)).convert("P")
    assert read(tmp_path, palette, transparency=0).min() == 255
    grey_alpha = Image.new("LA", (60, 40), (0, 0))
    assert read(tmp_path, grey_alpha).min() == 255


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    pixels = read(tmp_path, Image.fromarray(gradient()), "a.jpg", (60, 40), exif=exif, quality=95)
    expected = np.rot90(gradient(), -1)
    assert np.abs(pixels[..., 0].astype(int) - expected).max() < 12


def test_resize_keeps_the_shape_and_is_antialiased(tmp_path):
    circle = Image.new("L", (400, 200))
    y, x = np.mgrid[:200, :400]
    circle = Image.fromarray(((x - 200) ** 2 + (y - 100) ** 2 < 80**2).astype(np.uint8) * 255)
    small = read(tmp_path, circle, size=(50, 50))[..., 0]
    assert small.shape == (50, 50)
    mask = small > 127
    assert (
        abs(mask.any(0).sum() - mask.any(1).sum()) <= 1 and abs(mask.sum() - np.pi * 20**2) < 40
    )  # still a circle
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128)))
    assert np.abs(read(tmp_path, stripes, size=(32, 32)).astype(int) - 127).max() <= 6  # no moire
    assert read(tmp_path, Image.fromarray(gradient()), size=(64, 96)).shape == (
        64,
        96,
        3,
    )  # height first


# --- Folders ---


def test_class_folders(images):
    found = load_image_set(images, SIZE, conditional=True)
    assert (
        found.class_names == ["bag", "boot", "trouser"]
        and found.mode == "L"
        and found.channels == 1
    )
    assert len(found) == 13 and found.labels == [0] * 5 + [1] * 4 + [2] * 4
    pixels, label, index = found[7]
    assert (label, index) == (1, 7) and pixels.shape == (1, *SIZE) and pixels.dtype == torch.uint8
    assert np.array_equal(pixels[0], np.asarray(Image.open(images / found.files[7])))


def test_folders_without_classes(images):
    assert load_image_set(images, SIZE, conditional=False).class_names == []
    assert len(load_image_set(images, SIZE, conditional=False)) == 13
    flat = images / "bag"
    assert len(load_image_set(flat, SIZE, conditional=False)) == 5
    with pytest.raises(UserError, match="no class folders"):
        load_image_set(flat, SIZE, conditional=True)
    one_class = load_image_set(images.parent, SIZE, conditional=True)
    assert one_class.class_names == ["images"] and len(one_class) == 13


def test_colour_anywhere_makes_the_set_rgb(images):
    Image.new("RGB", SIZE, (200, 10, 10)).save(images / "trouser" / "zzz.png")
    found = load_image_set(images, SIZE, conditional=True)
    assert found.mode == "RGB" and found[0][0].shape == (3, *SIZE)
    assert torch.equal(found[0][0][0], found[0][0][2])  # the grey ones read before it too
    assert found[13][0][:, 0, 0].tolist() == [200, 10, 10]
    for file in images.rglob("*.png"):
        Image.open(file).convert("L").convert("RGB").save(file)
    assert (
        load_image_set(images, SIZE, conditional=True).mode == "L"
    )  # grey pixels, whatever the file's mode


def test_broken_files_are_named_and_left_out(images):
    good = (images / "bag" / "000.png").read_bytes()
    (images / "bag" / "cut.png").write_bytes(good[: len(good) // 2])
    (images / "bag" / "empty.jpg").write_bytes(b"")
    (images / "bag" / "text.webp").write_text("no image")
    (images / "bag" / ".hidden.png").write_bytes(good)
    (images / "bag" / "notes.txt").write_text("not looked at")
    (images / "void").mkdir()
    (images / ".git").mkdir()
    found = load_image_set(images, SIZE, conditional=True)
    assert sorted(found.left_out) == ["bag/cut.png", "bag/empty.jpg", "bag/text.webp", "void/"]
    assert len(found) == 13 and found.class_names == ["bag", "boot", "trouser"]


def test_folders_with_nothing_to_train_on(tmp_path):
    for conditional in (True, False):
        with pytest.raises(UserError, match="missing cannot be read: No such file"):
            load_image_set(tmp_path / "missing", SIZE, conditional)
    with pytest.raises(UserError, match="holds no images"):
        load_image_set(tmp_path, SIZE, False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="none of the 1 images.*a/x.png"):
        load_image_set(tmp_path, SIZE, True)


def test_odd_names_and_shapes(tmp_path):
    folder = tmp_path / "classe été 鞋"
    folder.mkdir()
    Image.new("L", (1, 1), 77).save(folder / "dot .png")
    Image.new("L", (9000, 2), 77).save(folder / "line.png")
    Image.fromarray(gradient()).save(folder / "wrong suffix.jpg", format="PNG")
    Image.fromarray(gradient()).save(
        folder / "anim.gif", save_all=True, append_images=[Image.new("L", (60, 40))]
    )
    found = load_image_set(tmp_path, SIZE, True)
    assert len(found) == 4 and not found.left_out and found.class_names == ["classe été 鞋"]


def test_bombs_and_very_wide_images(tmp_path):
    Image.new("1", (20_000, 20_000)).save(
        tmp_path / "bomb.png"
    )  # 50 kB that unpack to 400 million pixels
    Image.new("L", (20_000, 30), 99).save(tmp_path / "wide.png")
    found = load_image_set(tmp_path, SIZE, False)
    assert list(found.left_out) == ["bomb.png"] and "bomb" in found.left_out["bomb.png"]
    assert found.files == ["wide.png"] and found[0][0].unique().tolist() == [99]


def test_a_set_too_large_to_keep_is_read_again(images):
    kept, read_again = (
        load_image_set(images, SIZE, True, cache=cache) for cache in ("ram", "none")
    )
    assert kept.pixels is not None and read_again.pixels is None
    assert all(torch.equal(kept[i][0], read_again[i][0]) for i in range(13))
    assert kept.fingerprint() == read_again.fingerprint()
    (images / "bag" / "000.png").write_bytes((images / "bag" / "001.png").read_bytes())
    assert load_image_set(images, SIZE, True).fingerprint() != kept.fingerprint()


# --- Batches ---


def order(length, batch_size, world_size, start=0, total=12, seed=0):
    """Image numbers by global step: what all processes see together, in the order of the places."""
    ranks = [
        list(
            StepSampler(
                range(length), batch_size * world_size, seed, start, total, rank, world_size
            )
        )
        for rank in range(world_size)
    ]
    flat = [i for turn in zip(*ranks, strict=True) for i in turn]
    size = batch_size * world_size
    return [flat[k : k + size] for k in range(0, len(flat), size)]


@pytest.mark.parametrize("length", [13, 8, 3, 1])
def test_global_batches_do_not_depend_on_the_processes(length):
    alone = order(length, 8, 1)
    assert len(alone) == 12 and all(len(batch) == 8 for batch in alone)
    assert alone == order(length, 4, 2) == order(length, 2, 4)


def test_an_epoch_holds_every_image_and_fills_up_from_its_beginning():
    batches = order(13, 4, 1)
    assert steps_per_epoch(13, 4) == 4
    first, second = ([i for batch in batches[e : e + 4] for i in batch] for e in (0, 4))
    assert sorted(first[:13]) == sorted(second[:13]) == list(range(13))
    assert first[13:] == first[:3] and first != second
    assert order(13, 4, 1, seed=1) != batches


@pytest.mark.parametrize("start", [1, 4, 7])
def test_a_run_can_start_at_any_step(start):
    assert order(13, 4, 1, start) == order(13, 4, 1)[start:]
    assert order(13, 2, 2, start) == order(13, 4, 1)[start:]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(images, workers):
    found = load_image_set(images, SIZE, True)
    loader = build_loader(found, StepSampler(found, 4, 0, 0, 5), 2, workers, pin=False)
    batches = list(loader)
    assert len(batches) == 10
    seen = torch.cat([index for _, _, index in batches]).tolist()
    assert seen == [i for batch in order(13, 4, 1, total=5) for i in batch]
    for pixels, labels, index in batches:
        assert pixels.shape == (2, 1, *SIZE) and pixels.dtype == torch.uint8
        assert labels.tolist() == [found.labels[i] for i in index]


def test_no_two_pairs_of_seed_and_epoch_share_an_order():
    """Once (seed 0, epoch 1) had the order of (seed 1, epoch 0): the two were added."""
    orders = set()
    for seed in range(6):
        sampler = StepSampler(range(50), 10, seed, 0, 5)
        orders |= {tuple(sampler.epoch(epoch)) for epoch in range(6)}
    assert len(orders) == 36
