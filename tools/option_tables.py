#!/usr/bin/env python3
"""Regenerate the option tables in docs/options.md from the scripts' own tables.

python tools/option_tables.py
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt

PAGE = opt.ROOT / "docs" / "options.md"
MARKERS = re.compile(r"(<!-- options of (\w+)\.py -->\n).*?(<!-- end -->)", re.S)


def with_tables(text: str) -> str:
    """The text with each table between its markers made from the script's options."""

    def table(match: re.Match) -> str:
        return match[1] + opt.markdown_tables(load_script(match[2]).OPTIONS) + match[3]

    return MARKERS.sub(table, text)


def load_script(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, opt.ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str] | None = None) -> None:
    opt.make_parser(__doc__, {}).parse_args(argv)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_tables(text), encoding="utf-8")
    opt.say(f"{len(MARKERS.findall(text))} tables in {PAGE}")


if __name__ == "__main__":
    opt.run_script(main)
