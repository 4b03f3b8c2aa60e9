"""README is what the code is."""

import ast
import re
import shlex

import pytest
from helpers import ROOT

from tools.readme_tables import READMES, parser_of, with_tables


def code_blocks(text):
    return re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)


@pytest.mark.parametrize("name", READMES)
def test_option_tables_equal_the_parsers(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.count("<!-- options of ") == 3
    assert with_tables(text) == text, "run python tools/readme_tables.py"


def test_both_languages_have_the_same_commands():
    one, two = (code_blocks((ROOT / name).read_text(encoding="utf-8")) for name in READMES)
    commands = [[line for line in block.splitlines() if not line.startswith("#")] for block in one]
    assert len(commands[0]) == len(commands[1]) == len(commands[2]) == 1
    for ours, theirs in zip(commands, two, strict=True):
        if ours[0].startswith(("python", "pip", "tensorboard", "torchrun")):
            assert ours == [line for line in theirs.splitlines() if not line.startswith("#")]


def test_every_command_in_readme_parses():
    lines = [line for block in code_blocks((ROOT / "README.md").read_text()) for line in block.splitlines()]
    parsed = 0
    for line in lines:
        if match := re.search(r"tools/(train|generate|prepare_dataset)\.py(.*)", line):
            if line.startswith(("python", "torchrun", "pip")):
                parser_of(match[1]).parse_args(shlex.split(match[2], comments=True))
                parsed += 1
    assert parsed >= 12


def test_the_shape_of_the_code():
    """The bounds in CONTRIBUTING: a reader can hold train.py and all it reaches."""
    reached, queue = set(), [ROOT / "tools/train.py"]
    while queue:
        file = queue.pop()
        if file in reached or not file.is_file():
            continue
        reached.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                for depth in range(1, name.count(".") + 2):
                    path = ROOT / "/".join(name.split(".")[:depth])
                    queue += [path.with_suffix(".py"), path / "__init__.py"]
    assert len(reached) <= 22, sorted(str(file.relative_to(ROOT)) for file in reached)
    assert sum(len(file.read_text().splitlines()) for file in reached) <= 2500
    for file in [*reached, *(ROOT / "tools").glob("*.py")]:
        text = file.read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                bound = 150 if node.name == "fit" else 60
                assert node.end_lineno - node.lineno + 1 <= bound, f"{file}: {node.name}"


def test_imports_go_one_way():
    for folder, allowed in (("model", {"model"}), ("utils", {"model", "utils"})):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                ours = {name.split(".")[0] for name in modules} & {"model", "utils", "tools"}
                assert ours <= allowed, file
