"""Images and their conditions, paired by name: what is read, what is left out, and what is said."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.condition import LabelCondition, PictureCondition
from utils.data import describe, load_image_set
from utils.data.conditions import condition_files, pair, read_condition
from utils.data.decode import decode
from utils.errors import UserError
from utils.image_facts import LABEL_MAP

SIZE = (8, 8)
NUMBERS = (0, 3, 7)


def numbers_of(i: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Label numbers that no mirror image repeats, and that tell image i from the others."""
    chance = np.random.RandomState(i)
    return chance.choice(NUMBERS, size).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Six images in two classes, and a palette file of each one's numbers; endings differ."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for i in range(6):
        name = f"{'ab'[i % 2]}/{i}"
        for folder in (images, masks):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(images / f"{name}.bmp")
        save_map(numbers_of(i), masks / f"{name}.png")
    return images, masks


def save_map(numbers: np.ndarray, file: Path, **options) -> None:
    """As a palette file whose colours have nothing to do with the numbers."""
    picture = Image.fromarray(numbers).convert("P")
    picture.putdata(numbers.flatten().tolist())
    picture.putpalette([255 - value // 3 for value in range(768)])
    picture.save(file, **options)


def paired(images: Path, masks: Path, kind: str = "auto", conditional: bool = True, size=SIZE):
    return pair(load_image_set(images, size, conditional), masks, kind, "none", True)


# --- Pairs ---


def test_each_image_has_the_condition_of_its_name(folders):
    found = paired(*folders)
    assert found.condition.config == {"name": "labels", "values": list(NUMBERS)}
    assert len(found) == 6
    for i in range(6):
        planes, label, place = found[i]
        number = int(Path(found.name(i)).stem)
        assert place == i and label == number % 2
        assert planes.shape == (4, *SIZE) or planes.shape == (2, *SIZE)
        assert np.array_equal(planes[-1].numpy(), numbers_of(number))
        assert int(planes[0, 0, 0]) == 40 * number
    some = found.subset(np.array([4, 1]))
    assert [some.name(i) for i in range(2)] == [found.name(4), found.name(1)]
    assert np.array_equal(some[0][0].numpy(), found[4][0].numpy())


def test_a_picture_among_many_label_maps_is_not_left_out_without_a_word(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for i in range(40):
        Image.fromarray(np.full((*SIZE, 3), 6 * i, np.uint8)).save(images / f"{i:02}.bmp")
        save_map(numbers_of(i), masks / f"{i:02}.png")
    (masks / "38.png").unlink()
    Image.new("RGB", SIZE, "red").save(masks / "38.png")
    with pytest.raises(UserError, match="38.png is none: --condition_kind picture"):
        paired(images, masks, conditional=False)
    assert len(paired(images, masks, "labels", conditional=False)) == 39
    for i in range(33, 40):
        Image.new("RGB", SIZE, "red").save(masks / f"{i:02}.png")
    assert isinstance(paired(images, masks, conditional=False).condition, PictureCondition)


def test_what_has_no_partner_is_named(folders):
    images, masks = folders
    (masks / "a/0.png").unlink()
    (masks / "b/3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    save_map(numbers_of(9), masks / "b/nobody.png")
    found = paired(images, masks)
    assert len(found) == 4
    text = "\n".join(describe(found.images, all_classes=False))
    assert "6 seen = 4 used + 2 left out" in text
    assert "no condition of its name (a/0.bmp)" in text
    assert "its condition cannot be read (b/3.bmp)" in text
    assert "1 conditions belong to no image: b/nobody" in text
    assert "1 conditions cannot be read" in text and "b/3.png" in text


def test_a_class_without_any_condition_is_not_learned(folders):
    images, masks = folders
    (images / "A").mkdir()
    shutil.copy(images / "a/0.bmp", images / "A/0.bmp")  # sorted before the others
    found = paired(images, masks)
    assert found.images.class_names == ["a", "b"]
    assert found.images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert any("no image of A has a condition" in line for line in describe(found.images))
    assert paired(images, masks, conditional=False).images.class_names == []


def test_a_label_without_any_condition_is_not_learned(folders):
    images, masks = folders
    rows = [f'{"ab"[i % 2]}/{i}.bmp,"{"xyz"[i % 3]},{"uv"[i % 2]}"' for i in range(6)]
    (images / "labels.csv").write_text("\n".join(["file,labels", *rows]) + "\n")
    for i in (1, 3, 4, 5):  # what is left are x with u, and z with u
        (masks / f"{'ab'[i % 2]}/{i}.png").unlink()
    found = paired(images, masks)
    assert found.images.class_names == ["u", "x", "z"]
    rows_seen = [sorted(found.images.label(i).tolist()) for i in range(2)]
    assert rows_seen == [[0, 1], [0, 2]]


def test_a_folder_without_any_partner(folders, tmp_path):
    images, _ = folders
    others = tmp_path / "others"
    others.mkdir()
    save_map(numbers_of(0), others / "x.png")
    with pytest.raises(UserError, match="no condition for any of the 6 images.*a/0 and x"):
        paired(images, others)


def test_two_conditions_of_one_name(folders):
    images, masks = folders
    save_map(numbers_of(0), masks / "a/0.gif")
    with pytest.raises(UserError, match=r"two conditions of one name: a/0\.gif.*a/0\.png"):
        paired(images, masks)


@pytest.mark.parametrize("wrong", ["missing", "a file", "empty"])
def test_a_wrong_folder(folders, tmp_path, wrong):
    images, masks = folders
    path = {"missing": tmp_path / "no", "a file": masks / "a/0.png", "empty": tmp_path / "e"}[wrong]
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError):
        paired(images, path)


# --- Kinds ---


def test_pictures_are_pictures(folders):
    images, masks = folders
    for file in masks.rglob("*.png"):
        chance = np.random.RandomState(int(file.stem))
        Image.fromarray(chance.randint(0, 256, (*SIZE, 3)).astype(np.uint8)).save(file)
    found = paired(images, masks)
    assert found.condition.config == {"name": "picture", "planes": 3}
    wanted = decode(masks / "a/0.png", SIZE).pixels.transpose(2, 0, 1)
    assert np.array_equal(found[0][0][-3:].numpy(), wanted)


def test_grey_files_of_many_numbers_are_pictures_unless_asked(folders):
    images, masks = folders
    for file in masks.rglob("*.png"):
        shades = np.arange(64).reshape(SIZE) + 30 * int(file.stem)
        Image.fromarray(shades.astype(np.uint8)).save(file)
    assert isinstance(paired(images, masks).condition, PictureCondition)
    with pytest.raises(UserError, match="64 are the most.*condition_kind picture"):
        paired(images, masks, kind="labels")


def test_grey_files_of_few_numbers_may_be_pictures(folders):
    images, masks = folders
    for file in masks.rglob("*.png"):
        Image.fromarray(numbers_of(int(file.stem))).save(file)
    labels, picture = paired(images, masks), paired(images, masks, kind="picture")
    assert isinstance(labels.condition, LabelCondition)
    assert picture.condition.config == {"name": "picture", "planes": 1}
    assert np.array_equal(labels[2][0][-1], picture[2][0][-1])


def test_a_damaged_file_makes_no_pictures_of_label_maps(folders):
    images, masks = folders
    (masks / "a/0.png").write_bytes(b"")
    (masks / "b/1.png").write_bytes(b"%!PS nothing")
    found = paired(images, masks)
    assert isinstance(found.condition, LabelCondition) and len(found) == 4


# --- Label maps ---


@pytest.mark.parametrize("factor", [2, 3])
def test_a_larger_map_is_fitted_without_new_numbers(tmp_path, factor):
    numbers = numbers_of(0)
    save_map(numbers.repeat(factor, 0).repeat(factor, 1), tmp_path / "large.png")
    fitted = decode(tmp_path / "large.png", SIZE, LABEL_MAP).pixels
    assert np.array_equal(fitted[..., 0], numbers)


def test_a_wide_map_is_cropped_as_an_image_is(tmp_path):
    numbers = numbers_of(1, (8, 16))
    save_map(numbers, tmp_path / "wide.png")
    colours = np.repeat((numbers * 30)[..., None], 3, axis=2)
    Image.fromarray(colours).save(tmp_path / "image.png")
    cropped = decode(tmp_path / "wide.png", SIZE, LABEL_MAP).pixels[..., 0]
    assert np.array_equal(cropped * 30, decode(tmp_path / "image.png", SIZE).pixels[..., 0])


def test_a_turned_map_is_put_upright_as_an_image_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_map(numbers_of(2), tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "turned.png", SIZE, LABEL_MAP).pixels[..., 0]
    assert np.array_equal(upright, np.rot90(numbers_of(2), -1))


def test_black_and_white_files_are_maps_of_two_labels(tmp_path):
    is_white = np.random.RandomState(0).rand(*SIZE) > 0.5
    Image.fromarray(is_white).save(tmp_path / "bits.png")
    found = decode(tmp_path / "bits.png", SIZE, LABEL_MAP).pixels[..., 0]
    assert np.array_equal(found, np.where(is_white, 255, 0))


@pytest.mark.parametrize("mode", ["RGB", "I;16", "LA"])
def test_other_files_are_no_maps(tmp_path, mode):
    shape = {"RGB": (*SIZE, 3), "I;16": SIZE, "LA": (*SIZE, 2)}[mode]
    kind = np.uint16 if mode == "I;16" else np.uint8
    Image.fromarray(np.zeros(shape, kind)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="no label map"):
        decode(tmp_path / "other.png", SIZE, LABEL_MAP)


# --- For images that are to be made ---


def test_conditions_for_generating_are_read_as_in_training(folders):
    found = paired(*folders)
    files = condition_files(folders[1])
    assert [str(file.relative_to(folders[1]).with_suffix("")) for file in files] == [
        str(Path(found.conditions.name(i)).with_suffix("")) for i in (0, 1, 2, 3, 4, 5)
    ]
    for i, file in enumerate(files):
        read = read_condition(file, file.name, found.condition, SIZE)
        assert np.array_equal(read, found[i][0][-1:])


def test_a_label_that_was_not_learned(folders, tmp_path):
    condition = paired(*folders).condition
    save_map(np.full(SIZE, 5, np.uint8), tmp_path / "new.png")
    with pytest.raises(UserError, match="has the label 5; the network learned the labels 0, 3, 7"):
        read_condition(tmp_path / "new.png", "new.png", condition, SIZE)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        read_condition(tmp_path / "broken.png", "broken.png", condition, SIZE)
    with pytest.raises(UserError, match="does not exist"):
        condition_files(tmp_path / "no")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no images"):
        condition_files(empty)


def test_a_condition_that_goes_while_a_run_trains(folders):
    images, masks = folders
    found = paired(images, masks)
    found.conditions.retry_pauses = ()
    shutil.rmtree(masks / "a")
    assert "can no longer be read" in str(found[0])


@pytest.mark.parametrize(
    ("shape", "own", "is_other"),
    [
        ((64, 192), (64, 64), True),
        ((48, 64), (64, 48), True),  # one of the two was turned
        ((480, 641), (120, 160), False),
        ((8, 8), (64, 64), False),
        ((333, 500), (166, 250), False),
        ((333, 500), (176, 250), True),
    ],
)
def test_conditions_of_another_shape_are_named(tmp_path, shape, own, is_other):
    """Both would be cropped to their own middle, and the network learn what lies elsewhere."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(images / "a.png")
    save_map(numbers_of(0, own), masks / "a.png")
    found = pair(load_image_set(images, SIZE, False, quiet=True), masks, "labels", "none", True)
    said = "\n".join(describe(found.images))
    sizes = f"a.png with {own[0]},{own[1]} pixels beside {shape[0]},{shape[1]}"
    assert (f"1 of 1 conditions have another shape than their images, such as {sizes}" in said) == (
        is_other
    )
