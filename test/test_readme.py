"""README is what the code is."""

import ast
import re
import shlex

from helpers import ROOT

from tools.option_tables import PAGE, load_script, with_tables


def code_blocks(text):
    return re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)


READMES = ("README.md", "README_zh.md")


def test_option_tables_equal_the_scripts_tables():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- options of ") >= 4
    assert with_tables(text) == text, "run python tools/option_tables.py"


def test_both_languages_have_the_same_commands():
    one, two = (code_blocks((ROOT / name).read_text(encoding="utf-8")) for name in READMES)
    commands = [[line for line in block.splitlines() if not line.startswith("#")] for block in one]
    assert len(commands[0]) == len(commands[1]) == len(commands[2]) == 1
    for ours, theirs in zip(commands, two, strict=True):
        if ours[0].startswith(("python", "pip", "tensorboard", "torchrun")):
            assert ours == [line for line in theirs.splitlines() if not line.startswith("#")]


def test_every_command_in_readme_parses():
    lines = [
        line
        for block in code_blocks((ROOT / "README.md").read_text())
        for line in block.splitlines()
    ]
    parsed = 0
    for line in lines:
        if match := re.search(r"tools/(train|generate|prepare_dataset)\.py(.*)", line):
            if line.startswith(("python", "torchrun", "pip")):
                load_script(match[1]).build_parser().parse_args(
                    shlex.split(match[2], comments=True)
                )
                parsed += 1
    assert parsed >= 12


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
