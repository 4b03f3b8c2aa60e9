"""What lies in a folder: every file is accounted for, and the layout is said."""

import os
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data import describe, load_image_set, read_image
from utils.data import index as index_module
from utils.data.flat import FlatNames, FlatNumbers
from utils.data.formats import RAW
from utils.data.index import scan_folder
from utils.errors import UserError
from utils.pictures import save_image

SIZE = (8, 8)


def picture(path: Path, seed: int = 0, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path


def plan(root: Path, conditional: bool = True, **options) -> str:
    return "\n".join(describe(load_image_set(root, SIZE, conditional), **options))


def files_below(root: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(root))


# --- The account ---


def test_files_seen_are_images_used_and_files_left_out(tmp_path):
    root = tmp_path / "set"
    for i in range(3):
        picture(root / "a" / f"{i}.png", i)
        picture(root / "b" / "deeper" / f"{i}.JFIF", i, "JPEG")
        picture(root / f"beside {i}.webp", i)
    picture(root / "a" / "no ending", 5, "PNG")
    picture(root / "a" / "odd.xyz", 6, "GIF")
    picture(root / "a" / ".hidden.png", 7, "PNG")
    picture(root / "b" / ".git" / "x.png", 7)
    picture(root / "a" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB.jpg", 8)
    picture(root / "$RECYCLE.BIN" / "x.jpg", 9)
    (root / "a" / "notes.txt").write_text("P3 is a colour space")
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "a" / "cut.png").write_bytes((root / "a" / "0.png").read_bytes()[:60])
    (root / "a" / "drawing.eps").write_text("%!PS-Adobe-3.0")
    (root / "a" / "dangling.png").symlink_to("nowhere.png")
    (root / "a" / "circle.png").symlink_to("circle.png")
    (root / "a" / "second.png").symlink_to("0.png")
    (root / "a" / "up").symlink_to("..")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "void").mkdir()
    found = load_image_set(root, SIZE, True)
    account = found.account
    assert account.seen == files_below(root) == len(found) + account.left_out
    assert account.used == len(found) == 8
    counts = {reason: files.count for reason, files in account.reasons.items()}
    assert counts == {
        index_module.BESIDE_CLASSES: 3,
        index_module.HIDDEN: 1,
        index_module.IN_HIDDEN: 1,
        index_module.IN_SYSTEM: 2,
        index_module.SYSTEM_FILE: 1,
        index_module.NOT_AN_IMAGE: 1,
        index_module.DANGLING: 2,
        index_module.SECOND_PATH: 1,
        index_module.NOT_A_FILE: 1,
        "PostScript is not read, since that would start Ghostscript; save it as PNG": 1,
        "damaged or unreadable": 1,
    }
    assert account.reasons[index_module.BESIDE_CLASSES].per_ending() == "3 .webp"
    said = "\n".join(describe(found))
    for text in (
        "files       23 seen = 8 used + 15 left out",
        "left out    15: a/cut.png (",
        "3 .webp: beside the class folders, in none of them (beside 0.webp, beside 1.webp",
        "1 .txt: not an image (a/notes.txt)",
        "2 .png: link to a file that does not exist (a/circle.png, a/dangling.png)",
        "1 .png: second path to an image of the set (a/second.png)",
        "skipped     $RECYCLE.BIN/, a/@eaDir/: folders of the operating system",
        "skipped     b/.git/: hidden folders",
        "a/up/: folders that are in the set by another path",
        "class folders without a readable image: void/",
    ):
        assert text in said, text


@pytest.mark.parametrize("conditional", [True, False])
def test_overviews_within_folders(tmp_path, conditional):
    """In each folder that generate.py wrote; what others call a grid or a mask is an image."""
    for name in ("red/grid.png", "red/00000.png", "red/00001.png", "red/masks/00001.png"):
        picture(tmp_path / name)
    for name in (
        "blue/grid.png",
        "blue/boat.png",
        "blue/masks/1.png",
        "masks/0.png",
        "masks/1.png",
    ):
        picture(tmp_path / name)
    index = scan_folder(tmp_path, conditional)
    kept = ["blue/boat.png", "blue/grid.png", "blue/masks/1.png", "masks/0.png", "masks/1.png"]
    assert list(index.names) == [*kept, "red/00000.png", "red/00001.png"]
    assert index.account.used == 7 and index.account.seen == 9
    if conditional:
        assert [index.class_names[label] for label in index.labels[-2:]] == ["red", "red"]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_damaged_exif_beside_what_is_called_a_grid(tmp_path, ending, capfd):
    picture(tmp_path / "grid.png")
    Image.new("RGB", (8, 8)).save(tmp_path / f"a photo.{ending}", exif=b"Exif\0\0MM\0*")
    assert list(scan_folder(tmp_path, False).names) == [f"a photo.{ending}", "grid.png"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_overviews_of_images_that_are_called_like_their_conditions(tmp_path, ending):
    """Whose text says that generate.py made them, in each format."""
    for name in ("boat", "car", "grid"):
        settings = {"seed": 1, "sampler": "ddim"}
        save_image(Image.new("RGB", (8, 8)), tmp_path / f"{name}.{ending}", settings)
    assert list(scan_folder(tmp_path, False).names) == [f"boat.{ending}", f"car.{ending}"]


def test_classes_that_some_systems_call_their_bins(tmp_path):
    for name in ("glass", "organic", "recycled"):
        picture(tmp_path / name / "0.png")
    assert scan_folder(tmp_path, None).class_names == ["glass", "organic", "recycled"]


def test_the_thumbnail_in_a_camera_file_is_no_image(tmp_path):
    picture(tmp_path / "a.dng", 0, "TIFF")
    picture(tmp_path / "b.tif", 1, "TIFF")
    index = scan_folder(tmp_path, False)
    assert list(index.names) == ["b.tif"]
    assert index.account.reasons[RAW].examples == ["a.dng"]
    with pytest.raises(ValueError, match="raw file of a camera"):  # named by itself, too
        read_image(tmp_path / "a.dng", SIZE)


def test_parts_behind_a_link_are_no_parts_of_the_set(tmp_path):
    for name in ("train", "test"):
        picture(tmp_path / "outside" / name / "0.png")
    picture(tmp_path / "set" / "0.png", 1)
    (tmp_path / "set" / "link").symlink_to(tmp_path / "outside")
    index = scan_folder(tmp_path / "set", False)
    assert len(index) == 3 and not any("set/train" in remark for remark in index.remarks)


@pytest.mark.parametrize("conditional", [True, False])
def test_links(tmp_path, conditional):
    """A link to elsewhere is followed; of several paths to one place, the one without a link."""
    root, store = tmp_path / "set", tmp_path / "store"
    for i in range(3):
        picture(store / f"{i}.png", i)
        picture(root / "real" / f"{i}.png", i)
    (root / "a link").symlink_to(store)
    (root / "also").symlink_to(root / "real")
    (root / "files").mkdir()
    (root / "files" / "one.png").symlink_to(store / "0.png")
    (root / "files" / "two.png").symlink_to(root / "real" / "0.png")
    picture(root / ".annex" / "x.png", 9)
    (root / "files" / "three.png").symlink_to("../.annex/x.png")
    found = load_image_set(root, SIZE, conditional)
    names = [*(f"a link/{i}.png" for i in range(3)), "files/three.png"]
    names += [f"real/{i}.png" for i in range(3)]
    if "files/one.png" in found.files:  # reached first by one of its two links
        names = sorted([*names, "files/one.png"])
        names.remove("a link/0.png")
    assert found.files == names
    assert found.account.seen == len(found) + found.account.left_out
    assert found.account.skipped_folders[index_module.SECOND_FOLDER] == ["also/"]


def test_a_relative_root_and_a_root_that_is_a_link(images, monkeypatch):
    expected = scan_folder(images, True)
    (images.parent / "link").symlink_to(images)
    monkeypatch.chdir(images)
    for root in (Path("."), Path("../link"), Path("../images")):
        found = scan_folder(root, True)
        assert found.names == list(expected.names) and found.account.left_out == 0


def test_unreadable_folders(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if os.fsdecode(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fsdecode(path))
        return real(path)

    monkeypatch.setattr(index_module.os, "scandir", scandir)
    with pytest.raises(UserError, match="a/locked cannot be read: Permission denied"):
        scan_folder(tmp_path, True)
    (tmp_path / "a" / "locked").rename(tmp_path / "a" / "lost+found")
    assert len(scan_folder(tmp_path, True)) == 1


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="holds no images: 1 files were seen, 1 .txt .not an image"):
        load_image_set(tmp_path, SIZE, False)


# --- Classes and layout ---


def test_class_names_are_nfc(tmp_path):
    composed = unicodedata.normalize("NFC", "été")
    for name in ("z", "猫", unicodedata.normalize("NFD", composed)):
        picture(tmp_path / name / "0.png")
    found = load_image_set(tmp_path, SIZE, True)
    assert found.class_names == ["z", composed, "猫"]
    assert np.array_equal(found[1][0].numpy(), found[0][0].numpy())
    picture(tmp_path / composed / "0.png")
    with pytest.raises(UserError, match=r"'e\\u0301te\\u0301' and '\\xe9t\\xe9'.* are one name"):
        load_image_set(tmp_path, SIZE, True)


def test_names_that_are_not_utf_8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/cat\xff"
    os.mkdir(folder)
    source = picture(tmp_path / "dog" / "0.png")
    shutil.copy(source, folder + b"/\xfe.png")
    (tmp_path / "dog" / "cut\n.png").write_bytes(b"x")
    found = load_image_set(tmp_path, SIZE, True)
    assert found.class_names == ["cat\\xff", "dog"] and len(found) == 2
    "\n".join(describe(found)).encode()
    assert found.fingerprint() and list(found.left_out) == ["dog/cut\\x0a.png"]


def test_images_per_class(tmp_path):
    for name, count in (("few", 1), ("many", 3), ("some", 2)):
        for i in range(count):
            picture(tmp_path / name / f"{i}.png", i)
    assert "most images: 3 in many; fewest: 1 in few" in plan(tmp_path)
    lines = plan(tmp_path, all_classes=True)
    assert "1 images in few\n" in lines and "2 images in some" in lines


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Valid", "Test"), ("train",)])
def test_parts_of_a_data_set_taken_for_classes(tmp_path, names):
    for name in names:
        for inner in ("a", "b"):
            picture(tmp_path / name / inner / "0.png")
    assert f"to learn the classes a, b, pass --dataset_path {tmp_path / names[0]}" in plan(tmp_path)


def test_parts_without_classes(tmp_path):
    for name in ("train", "val"):
        picture(tmp_path / name / "0.png")
    assert f"pass --dataset_path {tmp_path / 'train'} --conditional False" in plan(tmp_path)


def test_every_class_holds_the_same_parts(tmp_path):
    for name in ("cat", "dog"):
        for inner in ("test", "train"):
            picture(tmp_path / name / inner / "0.png")
    assert "every class folder holds test, train, and all of it is used for training" in plan(
        tmp_path
    )


def test_the_same_subfolders_in_every_class(tmp_path):
    for name in ("2019", "2020"):
        for inner in ("cat", "dog"):
            picture(tmp_path / name / inner / "0.png")
    assert f"(cat, dog): if these are the classes, pass --dataset_path {tmp_path / '2019'}" in plan(
        tmp_path
    )


def test_parts_learned_together_without_classes(tmp_path):
    for name in ("train", "val"):
        picture(tmp_path / name / "0.png")
    assert f"train alone, pass --dataset_path {tmp_path / 'train'}" in plan(tmp_path, False)


def test_an_ordinary_layout_has_no_remark(images):
    assert load_image_set(images, SIZE, True).remarks == []
    assert load_image_set(images, SIZE, False).remarks == []


# --- Size ---


def test_flat_sequences():
    names = FlatNames([b"a", b"", b"\xff.png", "é".encode()])
    assert list(names) == ["a", "", os.fsdecode(b"\xff.png"), "é"] and names[-1] == "é"
    assert names == ["a", "", os.fsdecode(b"\xff.png"), "é"] and names[1:3] == names.take([1, 2])
    assert names != ["a"] and len(FlatNames([])) == 0
    with pytest.raises(IndexError):
        names[4]
    numbers = FlatNumbers(np.array([3, 4], np.int32))
    assert numbers == [3, 4] and type(numbers[0]) is int and np.asarray(numbers).sum() == 7


@pytest.mark.fault
def test_a_million_files(tmp_path):
    for number in range(100):
        folder = tmp_path / f"class {number:02}"
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY)
        for i in range(10_000):
            os.close(os.open(f"{i:06}.png", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
        os.close(handle)
    start = time.perf_counter()
    found = scan_folder(tmp_path, True)
    seconds = time.perf_counter() - start
    shutil.rmtree(tmp_path)
    assert len(found) == 1_000_000 and found.names[-1] == "class 99/009999.png"
    assert seconds < 30


def test_a_format_without_a_signature_needs_no_ending(tmp_path):
    """TGA; and neither texts nor random bytes are taken for one."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (20, 20), (200, 50, 50)).save(tmp_path / "a" / "picture", format="TGA")
    (tmp_path / "a" / "notes").write_text("not an image\n" * 50)
    chance = np.random.default_rng(0)
    for i in range(20):
        (tmp_path / "a" / f"data{i}.bin").write_bytes(chance.bytes(300))
    found = load_image_set(tmp_path, (8, 8), True, cache="none")
    assert list(found.files) == ["a/picture"]
    assert found[0][0][:, 0, 0].tolist() == [200, 50, 50]
    assert found.account.seen == 22 == found.account.used + found.account.left_out


# --- Whether there are classes to learn ---


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["a/0.png", "b/0.png"], ["a", "b"]),
        (["a/x/0.png", "b/0.png"], ["a", "b"]),
        (["images/0.png", "images/1.png"], []),
        (["0.png", "1.png"], []),
        (["0.png", "a/1.png", "b/2.png"], ["a", "b"]),
        (["0.png", "a/1.png"], []),
        (["train/0.png", "test/1.png"], []),
        (["Train/a/0.png", "val/a/1.png"], []),
        (["train/0.png", "cat/1.png"], ["cat", "train"]),
        (["images/0.png", ".git/1.png"], []),
        (["images/0.png", "masks/notes.txt"], []),
        (["images/0.png", "empty/"], []),
    ],
)
def test_classes_are_learned_where_there_are_at_least_two(tmp_path, files, classes):
    for i, name in enumerate(files):
        path = tmp_path / "set" / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        elif name.endswith(".txt"):
            path.parent.mkdir(parents=True)
            path.write_text("x")
        else:
            picture(path, i)
    index = scan_folder(tmp_path / "set", None)
    assert index.class_names == classes
    is_one_left = files in (["images/0.png", "masks/notes.txt"], ["images/0.png", "empty/"])
    assert any("fewer than two hold images" in text for text in index.remarks) == is_one_left
    assert load_image_set(tmp_path / "set", SIZE, None).class_names == classes
    pictures = sum(name.endswith(".png") and not name.startswith(".") for name in files)
    beside = sum("/" not in name for name in files) if classes else 0
    assert len(index) == pictures - beside
    assert index.account.seen == files_below(tmp_path / "set")


def test_a_folder_with_a_few_sub_folders_is_one_set(tmp_path):
    """They are no classes where most images lie beside them."""
    for i in range(12):
        picture(tmp_path / f"{i}.png", i)
    for i, year in enumerate(("2023", "2024")):
        picture(tmp_path / year / "a.png", 20 + i)
    found = load_image_set(tmp_path, SIZE, None, quiet=True)
    assert len(found) == 14 and not found.class_names
    assert "more images lie beside the folders 2023, 2024 than in them" in "\n".join(
        describe(found)
    )
    assert load_image_set(tmp_path, SIZE, True, quiet=True).class_names == ["2023", "2024"]
    for i in range(12):
        picture(tmp_path / "2023" / f"b{i}.png", 40 + i)
    assert load_image_set(tmp_path, SIZE, None, quiet=True).class_names == ["2023", "2024"]
