"""Which file becomes which: names, what is done already, folders that do not go together."""

import os
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.errors import UserError
from utils.upscaling.folder import FolderJobs, single_job
from utils.upscaling.names import OutputNames
from utils.upscaling.output import Canvas, new_picture


def picture(path, size=(6, 5), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    return path


# --- Names ---


def test_names_that_keep_their_ending():
    names = ["a.png", "sub/b.PNG", "c.jpg"]
    rule = OutputNames(names)
    assert [rule.name(name, ".png") for name in names] == ["a.png", "sub/b.PNG", "c.png"]


def test_names_that_differ_in_their_ending_alone():
    names = ["a.png", "a.gif", "A.bmp", "b.gif", "sub/a.gif", "é.gif", "e\u0301.png", "x"]
    rule = OutputNames(names)
    results = [rule.name(name, ".png") for name in names]
    assert results[:5] == ["a.png", "a.gif.png", "A.bmp.png", "b.png", "sub/a.png"]
    assert results[5:] == ["é.gif.png", "e\u0301.png", "x.png"]


def test_two_rules_do_not_lead_to_one_name():
    """The ending goes behind that of a.gif, and takes the place of that of a.gif.bmp."""
    names = ["a.bmp", "a.gif", "a.gif.bmp"]
    rule = OutputNames(names)
    results = [rule.name(name, ".png") for name in names]
    assert results == ["a.bmp.png", "a.gif.png", "a.gif.png.png"]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_no_two_results_have_one_name(ending):
    """Whether each is written with the ending that is asked for or, by its contents, as PNG."""
    names = ["a.gif", "a.png", "a.gif.png", "a.gif.gif", "a.png.png", "a", "a.jpg", "a.png.jpg"]
    rule = OutputNames(names)
    wanted = [rule.name(name, ending) for name in names]
    as_png = [rule.name(name, ".png") for name in names]
    assert len(set(wanted)) == len(set(as_png)) == len(names)
    for i, one in enumerate(wanted):
        assert one not in as_png[:i] + as_png[i + 1 :]


# --- A folder ---


def jobs_of(source, out, ending=None):
    jobs = FolderJobs(source, out, ending)
    return {job.shown: job for job in jobs}


def test_a_folder_has_the_same_names(tmp_path):
    for name in ("b.png", "sub/deep/c.jpg", "d.gif"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "note.txt").write_text("text")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    found = jobs_of(tmp_path / "in", tmp_path / "out")
    assert list(found) == ["b.png", "d.gif", "sub/deep/c.jpg"]
    wanted = [job.wanted.relative_to(tmp_path / "out").as_posix() for job in found.values()]
    assert wanted == ["b.png", "d.gif", "sub/deep/c.jpg"]
    assert found["d.gif"].png == tmp_path / "out" / "d.gif.png"
    account = FolderJobs(tmp_path / "in", tmp_path / "out", None).account
    assert account.seen == 5 and account.left_out == 2


def test_results_are_no_sources(tmp_path):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "larger" / "a.png")
    picture(tmp_path / "in" / "larger than life" / "b.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "larger")
    jobs = FolderJobs(tmp_path / "in", tmp_path / "in" / "larger", None)
    assert [job.shown for job in jobs] == ["a.png", "larger than life/b.png"]
    assert jobs.results_left_out == 1
    os.remove(tmp_path / "in" / "a.png")
    os.remove(tmp_path / "in" / "larger than life" / "b.png")
    with pytest.raises(UserError, match="holds no images: the 1 images in it lie in OUT"):
        FolderJobs(tmp_path / "in", tmp_path / "in" / "larger", None)


def test_folders_that_do_not_go_together(tmp_path):
    source = tmp_path / "in"
    picture(source / "a.png")
    (tmp_path / "same").symlink_to(source)
    for out, sentence in (
        (source, "IN and OUT are the same folder"),
        (tmp_path / "same", "IN and OUT are the same folder"),
        (tmp_path, "lies in OUT"),
        (source / "a.png", "is a folder, but OUT .*a.png is a file: name a folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            FolderJobs(source, out, None)
    os.remove(source / "a.png")
    with pytest.raises(UserError, match="IN .*in holds no images: no files in it"):
        FolderJobs(source, tmp_path / "out", None)
    (source / "a.txt").write_text("text")
    with pytest.raises(UserError, match="1 files, 1 .txt .not an image."):
        FolderJobs(source, tmp_path / "out", None)


def test_what_is_done_already(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side
    source = picture(tmp_path / "in" / "a.jpg", size=(6, 4), exif=exif)
    job = jobs_of(tmp_path / "in", tmp_path / "out")["a.jpg"]
    assert not job.has_result(job.wanted, 2)
    picture(job.wanted, size=(8, 12))
    assert job.has_result(job.wanted, 2)
    assert not job.has_result(job.wanted, 3)
    os.utime(source, (2e9, 2e9))  # changed since
    assert not job.has_result(job.wanted, 2)
    os.utime(source, (0, 0))
    job.wanted.write_bytes(b"")
    assert not job.has_result(job.wanted, 2)
    source.write_bytes(b"")
    picture(job.wanted, size=(8, 12))
    assert not job.has_result(job.wanted, 2)


# --- A file ---


def test_the_result_of_one_file(tmp_path):
    source = picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    assert single_job(source, tmp_path / "out", None).wanted == tmp_path / "out" / "a.png"
    job = single_job(source, tmp_path / "out", ".webp")
    assert (job.wanted.name, job.png.name) == ("a.webp", "a.png")
    job = single_job(source, tmp_path / "new" / "b.jpg", None)
    assert (job.wanted, job.png) == (tmp_path / "new" / "b.jpg", tmp_path / "new" / "b.png")
    assert single_job(source, tmp_path / "b.jpeg", ".jpg").wanted.name == "b.jpeg"


def test_a_result_never_takes_the_place_of_the_source(tmp_path):
    source = picture(tmp_path / "a.png")
    for out in (source, tmp_path):
        with pytest.raises(UserError, match="IN and OUT are the same file"):
            single_job(source, out, None)
    for out in (tmp_path / "a.jpg", tmp_path):
        job = single_job(source, out, ".jpg")  # it may turn out to need PNG
        assert (job.wanted.name, job.png.name) == ("a.jpg", "a.jpg.png")


def test_endings_that_cannot_be_written(tmp_path):
    source = picture(tmp_path / "a.png")
    for out, ending, sentence in (
        ("b.gif", None, "OUT .*b.gif ends in .gif; results can be written as .png, .jpg"),
        ("missing", None, "OUT .*missing is no folder that exists, and has no ending"),
        ("b.png", ".webp", "--image_format webp, but OUT .*b.png ends in .png: leave one out"),
    ):
        with pytest.raises(UserError, match=sentence):
            single_job(source, tmp_path / out, ending)


def test_names_that_are_not_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/in/\xff.png"
    os.mkdir(tmp_path / "in")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", raw)
    (job,) = FolderJobs(tmp_path / "in", tmp_path / "out", None)
    assert job.shown == "\\xff.png" and job.source.exists()


def test_another_image_in_the_place_of_the_first_is_seen(tmp_path):
    """One that is moved or copied there keeps its own, earlier time."""
    source = picture(tmp_path / "in/a.png")
    other = picture(tmp_path / "other.png")
    os.utime(other, (1e9, 1e9))
    job = jobs_of(tmp_path / "in", tmp_path / "out")["a.png"]
    picture(job.wanted, (12, 10))
    assert job.has_result(job.wanted, 2)
    time.sleep(0.02)
    os.replace(other, source)
    assert not job.has_result(job.wanted, 2)


def test_a_result_is_found_again_beside_a_png_with_long_texts(tmp_path):
    """Pillow refuses it for them; its picture is read all the same."""
    text = PngInfo()
    text.add_text("history", "x" * 2_000_000, zip=True)
    picture(tmp_path / "in/a.png", pnginfo=text)
    job = jobs_of(tmp_path / "in", tmp_path / "out")["a.png"]
    picture(job.wanted, (12, 10))
    assert job.has_result(job.wanted, 2)


def test_two_writers_of_one_picture_have_files_of_their_own(tmp_path):
    canvas = Canvas((2, 3), 1, 8, None, None)
    with new_picture(tmp_path / "a.png", canvas) as first:
        with new_picture(tmp_path / "a.png", canvas) as second:
            assert len(list(tmp_path.iterdir())) == 2
            second.write(np.zeros((2, 3, 1), np.uint8))
        first.write(np.full((2, 3, 1), 9, np.uint8))
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[9] * 3] * 2
    assert len(list(tmp_path.iterdir())) == 1
