"""README and the pages in docs/ say what the code does."""

import ast
import re
import shlex
from itertools import zip_longest
from pathlib import Path
from unittest import mock

import pytest
from helpers import ROOT

from model import networks
from tools.option_tables import PAGE, load_script, with_tables

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*READMES, *DOCS]
OTHER_PAGES = sorted(ROOT.glob("*/README.md")) + [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LONGEST_README = 240  # lines

FENCE = re.compile(r"^ *```(.*)\n((?s:.*?))^ *```$", re.M)  # the word behind it, the lines inside
COMMAND = re.compile(r"(?:python|torchrun|pip)\b.*\btools/(\w+)\.py(.*)")
TREE = re.compile(r"^( *[\w/.]+)", re.M)  # of folders: the first word of a line


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, contents) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    return [(match[1], match[2]) for match in FENCE.finditer(text)]


def without_comments(block: str) -> list[str]:
    return [line for line in block.splitlines() if not line.startswith("#")]


def is_tree(block: str) -> bool:
    return block.startswith("datasets/")


def commands(page: Path) -> list[tuple[str, str]]:
    """(script, its arguments) of each command that runs a script of tools/."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    pieces = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    pieces += [code for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]
    matches = [COMMAND.match(piece.strip()) for piece in pieces]
    return [(match[1], match[2]) for match in matches if match]


def test_option_tables_equal_the_scripts_tables():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- options of ") >= 4
    assert with_tables(text) == text, "run python tools/option_tables.py"


def test_the_options_that_decide_are_named():
    (named,) = re.findall(r"`decides=True`:(.*?);", PAGE.read_text(encoding="utf-8"), re.S)
    table = load_script("train").OPTIONS
    decides = [option.flags[0] for group in table.values() for option in group if option.decides]
    assert re.findall(r"`(--\w+)`", named) == decides


def test_both_languages_have_the_same_structure():
    one, two = (page.read_text(encoding="utf-8") for page in READMES)
    for pattern in (r"^#+ ", r"\]\(([^)]+)\)", r"^\| `([^`]+)`", r"^<!--.*-->$"):
        english = re.findall(pattern, one, re.M)
        chinese = re.findall(pattern, two, re.M)
        languages = {"README.md", "README_zh.md"}  # each links to the other
        english = [found for found in english if found not in languages]
        assert english == [found for found in chinese if found not in languages], pattern


def test_both_languages_have_the_same_commands():
    for english, chinese in zip_longest(*map(blocks, READMES)):
        if is_tree(english[1]):
            assert TREE.findall(english[1]) == TREE.findall(chinese[1])
        else:
            assert english[0] == chinese[0]
            assert without_comments(english[1]) == without_comments(chinese[1])


def test_the_first_blocks_are_a_newcomers_commands():
    for page in READMES:
        first = [block.splitlines() for _, block in blocks(page)[:3]]
        assert first == [
            ["pip install -r requirements.txt && python tools/train.py"],
            ["pip install -r requirements-test.txt && python -m pytest -n 2 --dist loadfile"],
            ["python tools/generate.py --num_images 40"],
        ]


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_every_command_parses(page):
    for script, arguments in commands(page):
        words = shlex.split(arguments, comments=True)
        if script != "option_tables" and words != ["--help"]:
            load_script(script).build_parser().parse_args(words)


def test_the_pages_have_commands():
    assert len(commands(READMES[0])) >= 15
    assert sum(len(commands(page)) for page in DOCS) >= 10


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_readme_stays_a_front_door(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://", link):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_readme_links_to_every_page():
    text = READMES[0].read_text(encoding="utf-8")
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in text] == []


def examples() -> list:
    """The Python examples that are marked as such, each with a name for the test."""
    found = []
    for page in PAGES:
        for number, (language, block) in enumerate(blocks(page)):
            if language == "python run":
                found.append(pytest.param(block, id=f"{page.name}-{number}"))
    return found


@pytest.mark.parametrize("example", examples())
def test_the_python_examples_run(example, monkeypatch):
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(networks.DENOISERS), mock.patch.dict(networks.NETWORKS):
        exec(compile(example, "example", "exec"), {"__name__": "example"})


def test_imports_go_one_way():
    for folder, allowed in (("model", {"model"}), ("utils", {"model", "utils"})):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else []
                modules += (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                )
                ours = {name.split(".")[0] for name in modules} & {"model", "utils", "tools"}
                assert ours <= allowed, file
