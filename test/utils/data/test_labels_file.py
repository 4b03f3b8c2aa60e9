"""labels.csv: several labels for an image, and numbers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import describe, load_image_set
from utils.data.labels_file import read_labels
from utils.errors import UserError


def images(folder, names):
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), 20 + 7 * number, np.uint8)
        pixels[number % 8, 2] = 255
        Image.fromarray(pixels).save(file)
    return folder


def write(folder, text, encoding="utf-8"):
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    return folder / "labels.csv"


TABLE = """file,labels,age
a.png,"red,large",3
sub/b.png,red,
c.png,,5
"""


def test_labels_and_numbers_of_each_image(tmp_path):
    images(tmp_path, ["a.png", "sub/b.png", "c.png"])
    write(tmp_path, TABLE)
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    assert found.class_names == ["large", "red"]
    assert [found.files[i] for i in range(3)] == ["a.png", "c.png", "sub/b.png"]
    nan = math.nan
    # ages 3 and 5: mean 4, standard deviation 1; then the labels, as places in class_names
    expected = np.array([[-1, 0, 1], [1, nan, nan], [nan, 1, nan]], np.float32)
    rows = torch.stack([found[i][1] for i in range(3)]).numpy()
    assert np.array_equal(rows, expected, equal_nan=True)
    assert found.numbers == 1 and found.is_labelled
    assert found.label_counts().tolist() == [1, 2]
    lines = describe(found)
    assert "labels      2: large, red" in lines
    assert "number      age: 4 +- 1, known of 2 images" in lines
    assert found.metadata()["numbers"] == [{"name": "age", "mean": 4.0, "std": 1.0}]


def test_images_without_a_row_and_rows_without_an_image_are_named(tmp_path):
    images(tmp_path, ["a.png", "sub/b.png", "c.png", "extra.png"])
    write(tmp_path, TABLE + "gone.png,red,1\nlost.png,blue,2\n")
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    assert len(found) == 3
    text = "\n".join(describe(found))
    assert "1 .png: no row in labels.csv (extra.png)" in text
    assert "2 rows of labels.csv name files that are not there, or are left out: gone.png" in text
    assert found.account.seen == found.account.used + found.account.left_out == 5
    assert "blue" not in found.class_names


def test_a_name_is_looked_for_as_it_is_written_first(tmp_path):
    images(tmp_path, [" a.png", "a.png", "b\\c.png", "b/c.png", "d.png"])
    write(tmp_path, "file,labels\n a.png,one\na.png,two\nb\\c.png,three\n./d.png ,four\n")
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    labels = {found.files[i]: found.class_names[int(found[i][1])] for i in range(len(found))}
    assert labels == {" a.png": "one", "a.png": "two", "b\\c.png": "three", "d.png": "four"}
    assert "1 .png: no row in labels.csv (b/c.png)" in "\n".join(describe(found))


@pytest.mark.parametrize("first", ["a.png", ".\\a.png"])
def test_a_file_has_one_row(tmp_path, first):
    images(tmp_path, ["a.png"])
    write(tmp_path, f"file,labels\n{first},one\n./a.png,two\n")
    with pytest.raises(UserError, match="line [23]: a.png has a row in line [23] already"):
        load_image_set(tmp_path, (8, 8), None, quiet=True)


def test_a_broken_image_takes_its_labels_with_it(tmp_path):
    images(tmp_path, ["a.png", "sub/b.png", "c.png"])
    (tmp_path / "a.png").write_bytes(b"broken")
    write(tmp_path, TABLE)
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    assert found.class_names == ["red"]
    assert len(found) == 2


def test_labels_take_the_place_of_folders_only_where_they_are_wanted(tmp_path):
    images(tmp_path, ["x/a.png", "y/b.png"])
    write(tmp_path, "file,labels\nx/a.png,red\ny/b.png,blue\n")
    assert load_image_set(tmp_path, (8, 8), None, quiet=True).class_names == ["blue", "red"]
    assert load_image_set(tmp_path, (8, 8), True, quiet=True).class_names == ["blue", "red"]
    plain = load_image_set(tmp_path, (8, 8), False, quiet=True)
    assert plain.class_names == [] and plain.conditions is None


def test_a_subset_keeps_its_rows(tmp_path):
    images(tmp_path, ["a.png", "sub/b.png", "c.png"])
    write(tmp_path, TABLE)
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    part = found.subset(np.array([2, 0]))
    assert torch.equal(part[0][1].nan_to_num(-9), found[2][1].nan_to_num(-9))
    assert part.fingerprint() != found.fingerprint()


def test_the_fingerprint_sees_labels_and_numbers(tmp_path):
    images(tmp_path, ["a.png", "sub/b.png", "c.png"])
    prints = set()
    for text in (TABLE, TABLE.replace("red,large", "red"), TABLE.replace(",5", ",6")):
        write(tmp_path, text)
        prints.add(load_image_set(tmp_path, (8, 8), None, quiet=True).fingerprint())
    assert len(prints) == 3


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("sub/b.png", "sub\\b.png"),
        TABLE.replace("a.png", "./a.png"),
        TABLE.replace('"red,large"', '" red , large,red, "'),
        TABLE + "\n\n",
    ],
)
def test_what_spreadsheets_write(tmp_path, text):
    images(tmp_path, ["a.png", "sub/b.png", "c.png"])
    write(tmp_path, text)
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    assert len(found) == 3 and found.label_counts().tolist() == [1, 2]


def test_accents_are_compared_as_people_see_them(tmp_path):
    images(tmp_path, ["e\u0301t\u00e9.png"])
    write(tmp_path, "file,labels\n\u00e9te\u0301.png,rouge\n")
    assert load_image_set(tmp_path, (8, 8), None, quiet=True).class_names == ["rouge"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with a line that names its columns"),
        ("a.png,red\n", "must begin with a line that names its columns"),
        ("file\na.png\n", "has the column file alone"),
        ("file,labels,labels\na.png,red,blue\n", "without a name of their own"),
        ("file,labels,\na.png,red,1\n", "without a name of their own"),
        ("file,labels\na.png,red,large\n", "line 2: 3 cells.*need quotes"),
        ("file,labels,age\na.png,red,old\n", "line 2: 'old' in the column age is no number"),
        ("file,labels,age\na.png,red,nan\n", "is no number"),
        ("file,labels\n,red\n", "line 2: the cell of the column file is empty"),
        ("file,labels\na.png,red\na.png,blue\n", "line 3: a.png has a row in line 2 already"),
        ('file,labels\na.png,"red\nb.png,blue\n', "unexpected end.*begins in line 2"),
        ('file,labels\nb.png,x\na.png,"red\nc.png,"blue"\n', "no table .*begins in line 3"),
        ('file,labels\na.png,"red\nb.png,blue"\n', "line 2: .*goes on in the next line"),
        ("file,labels\nother.png,red\n", "has no row for any of the 1 images.*other.png"),
        ("file,labels\na.png,\n", "gives no image a label"),
        ("file,labels,age\na.png,red,\n", "column age of labels.csv has no number"),
        ("file,labels,age\na.png,red,1_000\n", "'1_000' in the column age is no number"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    images(tmp_path, ["a.png"])
    write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        load_image_set(tmp_path, (8, 8), None, quiet=True)


@pytest.mark.parametrize("number", ["0.1", "4", "1e300", "-3e-7"])
def test_a_number_that_is_always_the_same_is_scaled_by_one(tmp_path, number):
    """The deviation of three times 0.1 is 1.4e-17 in floating point."""
    images(tmp_path, ["a.png", "b.png", "c.png"])
    write(tmp_path, f"file,age\na.png,{number}\nb.png,{number}\nc.png,{number}\n")
    found = load_image_set(tmp_path, (8, 8), None, quiet=True)
    (column,) = found.conditions.numbers
    assert (column.mean, column.std) == (float(number), 1.0)
    assert found.conditions.rows.tolist() == [[0.0]] * 3


@pytest.mark.parametrize("numbers", [("1e308", "-1e308"), ("1e-300", "2e-300")])
def test_numbers_that_cannot_be_scaled_are_refused(tmp_path, numbers):
    images(tmp_path, ["a.png", "b.png"])
    write(tmp_path, "file,age\na.png,{}\nb.png,{}\n".format(*numbers))
    with pytest.raises(UserError, match="column age .* in another unit"):
        load_image_set(tmp_path, (8, 8), None, quiet=True)


def test_another_encoding_is_named(tmp_path):
    images(tmp_path, ["a.png"])
    with pytest.raises(UserError, match="not UTF-8"):
        read_labels(write(tmp_path, "file,labels\na.png,gr\u00fcn\n", "latin-1"))
