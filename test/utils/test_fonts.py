"""Fonts for names in any script. The fonts here are made in the test: none of the machine's."""

import io
import struct
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageFont, features

from utils import font_files, fonts, text, text_drawing
from utils.font_files import BUILT_IN, CodePoints, Face, font_data, read_code_points

SHOE, DOG, HEBREW, ARABIC = "鞋", "狗", "שלום", "سلام"
EGYPTIAN = "\U00013000"

# --- Making fonts ---


def format_4(segments):
    """A cmap subtable: segments of (start, end, difference, list of glyphs or None)."""
    segments = [*segments, (0xFFFF, 0xFFFF, 1, None)]
    count = len(segments)
    places, glyphs = [], []
    for i, (_, _, _, own) in enumerate(segments):
        places.append(0 if own is None else 2 * (count - i) + 2 * len(glyphs))
        glyphs += own or []

    def words(values):
        return struct.pack(f">{len(values)}H", *(value % 65536 for value in values))

    body = words([2 * count, 0, 0, 0])
    body += words([end for _, end, _, _ in segments]) + words([0])
    body += words([start for start, _, _, _ in segments])
    body += words([difference for _, _, difference, _ in segments])
    body += words(places) + words(glyphs)
    return struct.pack(">HHH", 4, 6 + len(body), 0) + body


def format_12(groups):
    body = b"".join(struct.pack(">LLL", *group) for group in groups)
    return struct.pack(">HHLLL", 12, 0, 16 + len(body), 0, len(groups)) + body


def cmap(subtables):
    """A cmap table from [(platform, encoding, subtable)]."""
    offset = 4 + 8 * len(subtables)
    records, bodies = b"", b""
    for platform, encoding, body in subtables:
        records += struct.pack(">HHL", platform, encoding, offset + len(bodies))
        bodies += body
    return struct.pack(">HH", 0, len(subtables)) + records + bodies


def font_file(tables, at=0):
    """A font file from {tag: contents}, whose first byte lies at `at` of a collection."""
    offset = 12 + 16 * len(tables)
    head = struct.pack(">LHHHH", 0x10000, len(tables), 0, 0, 0)
    bodies = b""
    for tag, body in tables.items():
        head += struct.pack(">4sLLL", tag, 0, at + offset + len(bodies), len(body))
        bodies += body + b"\0" * (-len(body) % 4)
    return head + bodies


def font_of_squares(characters):
    """A whole font that draws a square for each of the characters."""
    square = struct.pack(">hhhhhHH", 1, 100, 0, 900, 800, 3, 0) + bytes([1, 1, 1, 1])
    square += struct.pack(">hhhh", 100, 800, 0, -800) + struct.pack(">hhhh", 0, 0, 800, 0)
    square += b"\0" * (-len(square) % 4)
    groups = [(ord(c), ord(c), 1) for c in sorted(characters)]
    head = struct.pack(">LLLLHH", 0x10000, 0, 0, 0x5F0F3CF5, 3, 1000)
    head += struct.pack(">QQhhhhHHhhh", 0, 0, 0, 0, 900, 800, 0, 8, 2, 1, 0)
    return font_file(
        {
            b"cmap": cmap([(3, 10, format_12(groups))]),
            b"glyf": square,
            b"head": head,
            b"hhea": struct.pack(">Lhhh", 0x10000, 800, -200, 0)
            + struct.pack(">H11hH", 1000, *[0] * 11, 2),
            b"hmtx": struct.pack(">HhHh", 1000, 0, 1000, 100),
            b"loca": struct.pack(">LLL", 0, 0, len(square)),
            b"maxp": struct.pack(">LH13H", 0x10000, 2, 4, 1, *[0] * 11),
        }
    )


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose only font folder is tmp_path, without fontconfig. Call it after a change."""
    monkeypatch.setattr(fonts, "_proposed_face", Cleared(()))
    monkeypatch.setattr(font_files, "font_folders", lambda: [tmp_path])
    font_files.code_points_of.cache_clear()
    fonts.forget_fonts()
    yield tmp_path
    monkeypatch.undo()
    font_files.code_points_of.cache_clear()
    fonts.forget_fonts()


class Cleared:
    """A function of one answer that has the cache_clear of a cached one."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, *_):
        return self.answer

    def cache_clear(self):
        pass


# --- Which characters a font has ---


def test_the_built_in_font_has_what_it_draws():
    known = read_code_points(font_data(BUILT_IN))
    assert all(ord(c) in known for c in "AZaz09 -_()")
    assert not any(ord(c) in known for c in SHOE + HEBREW + EGYPTIAN)
    # Against FreeType: a character that the font lacks looks like another that it lacks.
    font = ImageFont.load_default(size=30)

    def drawn(code):
        mask = font.getmask(chr(code))
        return mask.size, bytes(mask)

    missing = drawn(ord(SHOE))
    for code in range(0x21, 0x7F):
        assert (code in known) == (drawn(code) != missing), hex(code)


@pytest.mark.parametrize(
    ("subtable", "inside", "outside"),
    [
        (format_4([(65, 70, -60, None)]), [65, 70], [64, 71]),
        (format_4([(65, 70, -67, None)]), [65, 66, 68, 70], [67]),  # 67 is glyph 0
        (format_4([(65, 68, 0, [3, 0, 0, 4]), (80, 81, 0, [0, 9])]), [65, 68, 81], [66, 67, 80]),
        (format_12([(0x978B, 0x978C, 7), (0x1F436, 0x1F436, 9)]), [0x978B, 0x1F436], [0x978D]),
        (format_12([(65, 67, 0)]), [66, 67], [65]),
    ],
)
def test_formats_of_the_table(subtable, inside, outside):
    known = read_code_points(io.BytesIO(font_file({b"cmap": cmap([(3, 10, subtable)])})))
    assert all(code in known for code in inside)
    assert not any(code in known for code in outside)


def test_the_table_with_all_planes_is_preferred_and_foreign_ones_are_not_read():
    small, full = format_4([(65, 65, -60, None)]), format_12([(0x1F436, 0x1F436, 1)])
    both = cmap([(1, 0, b"\0\0"), (3, 1, small), (3, 10, full)])
    assert 0x1F436 in read_code_points(io.BytesIO(font_file({b"cmap": both})))
    symbols = font_file({b"cmap": cmap([(3, 0, small)])})
    with pytest.raises(ValueError, match="no Unicode table"):
        read_code_points(io.BytesIO(symbols))


def test_collections(tmp_path):
    first_at = 12 + 8
    first = font_file({b"cmap": cmap([(3, 1, format_4([(65, 65, -60, None)]))])}, first_at)
    second_at = first_at + len(first)
    second = font_file({b"cmap": cmap([(3, 1, format_4([(66, 66, -60, None)]))])}, second_at)
    header = b"ttcf" + struct.pack(">LLLL", 0x10000, 2, first_at, second_at)
    file = tmp_path / "two.ttc"
    file.write_bytes(header + first + second)
    faces = font_files.faces_in(file)
    assert faces == [Face(file, 0), Face(file, 1)]
    assert [65 in font_files.code_points_of(face) for face in faces] == [True, False]
    assert [66 in font_files.code_points_of(face) for face in faces] == [False, True]


def test_damaged_fonts_are_value_errors():
    whole = font_of_squares(SHOE)
    for length in range(0, 300):
        try:
            read_code_points(io.BytesIO(whole[:length]))
        except ValueError:
            continue
        assert length >= 12 + 16 * 7  # the table comes first and may be whole
    overlapping = format_4([(0, 60_000, 1, None)] * 20)  # would be millions of characters
    with pytest.raises(ValueError, match="overlap"):
        read_code_points(io.BytesIO(font_file({b"cmap": cmap([(3, 1, overlapping)])})))
    assert 65 not in font_files.code_points_of(Face(Path("/no/font")))


def test_ranges():
    assert [n in CodePoints([(5, 6), (1, 2)]) for n in range(8)] == [
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    assert 0 not in CodePoints([])


# --- Finding one ---


def test_latin_stays_in_pillows_font_and_others_need_one_that_is_found(machine):
    assert fonts.readable("T-shirt 12") and not fonts.readable(SHOE)
    assert fonts.font_for("T-shirt", 12).getname()[0] == "Aileron"
    assert fonts.font_for(SHOE, 12) is None
    (machine / "Some.ttf").write_bytes(font_of_squares(SHOE))
    fonts.forget_fonts()
    assert fonts.readable(SHOE) and not fonts.readable(SHOE + DOG)
    assert fonts.font_for(SHOE, 12).path == str(machine / "Some.ttf")
    assert fonts.font_for(f"{SHOE} shoe", 12) is None and fonts.readable(f"{SHOE} shoe")


def test_names_that_mix_scripts_are_drawn_in_runs(machine):
    (machine / "A.ttf").write_bytes(font_of_squares(SHOE))
    (machine / "B.ttf").write_bytes(font_of_squares(HEBREW))
    fonts.forget_fonts()

    def parts(text):
        runs = [run.text.strip() for run in text_drawing._layout(text, 12)]
        return [text for text in runs if text]  # these fonts have no space

    assert parts(f"{SHOE} shoe") == [SHOE, "shoe"]
    assert parts(f"{SHOE} {HEBREW} x") == [SHOE, *parts(HEBREW), "x"]
    assert parts(f"{HEBREW} {SHOE}")[0] == SHOE  # it is read from the right


def test_plain_fonts_come_before_bold_ones(machine):
    for name in ("A-Bold.ttf", "B-Regular.ttf", "LastResort.ttf", "0.txt"):
        (machine / name).write_bytes(font_of_squares(SHOE))
    fonts.forget_fonts()
    assert [path.name for path in font_files.font_files()] == ["B-Regular.ttf", "A-Bold.ttf"]
    assert fonts.font_for(SHOE, 12).path.endswith("B-Regular.ttf")


def test_fonts_that_draw_nothing_or_cannot_be_read_are_passed_over(machine):
    whole = font_of_squares(SHOE)
    blank = whole.replace(struct.pack(">LLL", 0, 0, 36), struct.pack(">LLL", 0, 0, 0))
    assert blank != whole
    (machine / "A.ttf").write_bytes(blank)
    (machine / "B.ttf").write_bytes(whole[: len(whole) // 2])
    (machine / "C.ttf").write_bytes(b"no font")
    (machine / "D.ttc").write_bytes(b"ttcf\0\0\0\0\xff\xff\xff\xff")
    (machine / "E.ttf").symlink_to(machine / "gone")
    fonts.forget_fonts()
    assert not fonts.readable(SHOE)
    (machine / "F.ttf").write_bytes(whole)
    fonts.forget_fonts()
    assert fonts.font_for(SHOE, 12).path.endswith("F.ttf")


def test_accents_are_joined_and_need_no_glyph_of_their_own(machine):
    (machine / "A.ttf").write_bytes(font_of_squares("é"))
    fonts.forget_fonts()
    assert fonts.readable("e\u0301") and fonts.readable("\u200bé\ufe0f")
    assert not fonts.readable("x\u0302")


def test_odd_characters_are_drawn_all_the_same(machine):
    assert fonts.readable("a\tb\nc\u3000d\udcff") and fonts.readable("")
    assert text.as_drawn("\u202eabc") == "abc"  # else the seed that follows would be turned around


def test_the_search_is_made_once_a_script(machine, monkeypatch):
    (machine / "A.ttf").write_bytes(font_of_squares(SHOE + DOG))
    fonts.forget_fonts()
    assert fonts.readable(SHOE)
    monkeypatch.setattr(fonts, "_all_faces", lambda: pytest.fail("searched again"))
    assert fonts.readable(DOG)
    monkeypatch.undo()


def test_fontconfig_is_asked_and_may_be_missing(monkeypatch, tmp_path):
    def answer(command, **_):
        assert command[0] == "fc-match" and command[-1] == ":charset=978b"
        return subprocess.CompletedProcess(command, 0, b"/fonts/a.ttc\n131074")

    fonts._proposed_face.cache_clear()
    monkeypatch.setattr(subprocess, "run", answer)
    assert fonts._proposed_face("CJK", 0x978B) == (Face(Path("/fonts/a.ttc"), 2),)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    fonts._proposed_face.cache_clear()
    assert fonts._proposed_face("CJK", 0x978B) == ()
    fonts._proposed_face.cache_clear()


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_each_system_has_font_folders(platform, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    assert len(font_files.font_folders()) >= 2


def test_a_user_without_a_home_has_the_system_s_fonts(monkeypatch):
    monkeypatch.setattr(font_files.os.path, "expanduser", lambda path: path)
    assert Path("/usr/share/fonts") in font_files.font_folders()


# --- Layout ---


def test_right_to_left_without_raqm():
    turned = text_drawing._turned_around(list("אבג (12)"), base=True)
    assert "".join(turned) == "(12) גבא"
    turned = text_drawing._turned_around(list("אבג (12) 78"), base=True)
    assert "".join(turned) == "78 (12) גבא"
    turned = text_drawing._turned_around(list("ab אבג cd"), base=False)
    assert "".join(turned) == "ab גבא cd"


def test_without_raqm_nothing_fails(machine, monkeypatch):
    monkeypatch.setattr(features, "check", lambda _: False)
    (machine / "A.ttf").write_bytes(font_of_squares(ARABIC + "\u064e"))
    fonts.forget_fonts()
    runs = text_drawing._layout(f"a {ARABIC}", 12)
    assert "".join(run.text for run in runs) == "a " + ARABIC[::-1]


def test_shorten():
    def width(text):
        return text_drawing.text_width(text, 12)

    long = "a very long name of a class"
    assert text_drawing.shorten("short", 96, 12) == "short"
    assert text_drawing.shorten("short", 96, 12, "7") == "short 7"
    assert text_drawing.shorten("", 96, 12, "7") == "7"
    for room in (20, 40, 64, 96, 130):
        cut = text_drawing.shorten(long, room, 12)
        assert width(cut) <= room and cut.endswith("…") and long.startswith(cut[:-1])
        one_more = long[: len(cut[:-1]) + 2]
        assert width(one_more + "…") > room  # as much as fits
    with_end = text_drawing.shorten(long, 96, 12, "1234")
    assert with_end.endswith("… 1234") and width(with_end) <= 96
    assert width(text_drawing.shorten("a", 20, 12, "1234567890")) <= 20


def test_characters_without_a_font_become_question_marks(machine):
    assert [run.text for run in text_drawing._layout(f"a{SHOE}", 12)] == ["a?"]
    picture = Image.new("L", (60, 20), "white")
    text_drawing.draw_text(picture, (30, 10), f"a{SHOE}", 12, "mm")
    assert picture.getextrema()[0] < 128
