"""The page's own readers and writers of files, against Pillow's and Python's."""

import base64
import io
import zipfile

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytestmark = pytest.mark.slow


@pytest.fixture
def in_browser(open_page):
    """Runs an async JavaScript function of the page's origin."""
    page = open_page()
    return page.evaluate


def png_with(entries: PngInfo) -> list[int]:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG", pnginfo=entries)
    return list(buffer.getvalue())


READ = """async bytes => {
    const { pngTexts } = await import("/page/lib/png_text.js");
    return pngTexts(new Uint8Array(bytes).buffer);
}"""


def test_text_entries_of_every_kind_are_read(in_browser):
    entries = PngInfo()
    entries.add_text("plain", "caf\xe9")
    entries.add_text("compressed", "long " * 1000, zip=True)
    entries.add_itxt("class", "Katze 猫 🐈")
    entries.add_itxt("packed", "ü" * 500, zip=True)
    entries.add_itxt("class", "another of the same name")
    assert in_browser(READ, png_with(entries)) == {
        "plain": "caf\xe9",
        "compressed": "long " * 1000,
        "class": "Katze 猫 🐈",
        "packed": "ü" * 500,
    }


def test_a_text_that_inflates_without_end_is_read_up_to_a_limit(in_browser):
    entries = PngInfo()
    entries.add_text("bomb", "0" * 50_000_000, zip=True)
    read = in_browser(READ, png_with(entries))
    assert len(read["bomb"]) < 2_000_000


def test_keys_that_objects_have_anyway_are_plain_entries(in_browser):
    entries = PngInfo()
    entries.add_itxt("__proto__", "x")
    entries.add_itxt("constructor", "y")
    assert in_browser(READ, png_with(entries))["constructor"] == "y"


WRITE = """async files => {
    const { zip } = await import("/page/lib/zip.js");
    const parts = files.map(([name, numbers]) => ({ name, bytes: new Uint8Array(numbers) }));
    const bytes = new Uint8Array(await zip(parts, new Date(2026, 1, 3, 4, 5, 6)).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


def test_an_archive_holds_its_files(in_browser):
    files = {"00000_猫_7.png": bytes(range(256)) * 9, "empty.png": b"", "b.png": b"\0\xff"}
    written = in_browser(WRITE, [[name, list(data)] for name, data in files.items()])
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(written))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
        assert archive.infolist()[0].date_time == (2026, 2, 3, 4, 5, 6)


def test_names_of_files_lead_nowhere(in_browser):
    named = in_browser(
        """async texts => {
            const { fileName } = await import("/page/lib/format.js");
            return texts.map(fileName);
        }""",
        ["../../etc/passwd", "a/b\\c:d", "\x00\x1f", "x" * 300, "猫", ".hidden"],
    )
    assert named == ["_.._etc_passwd", "a_b_c_d", "_", "x" * 80, "猫", "hidden"]
