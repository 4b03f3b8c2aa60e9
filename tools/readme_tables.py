#!/usr/bin/env python3
"""Write the option tables in README.md and README_zh.md anew, from the parsers. A test holds them
equal.

python tools/readme_tables.py
"""

import importlib.util
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import options as opt

READMES = ("README.md", "README_zh.md")
MARKERS = re.compile(r"(<!-- options of (\w+)\.py -->\n).*?(<!-- end -->)", re.S)


def with_tables(text: str) -> str:
    """The text with each table between its markers made from the script's parser."""
    return MARKERS.sub(
        lambda match: match[1] + markdown_table(parser_of(match[2])) + match[3], text
    )


def parser_of(script: str) -> opt.Parser:
    spec = importlib.util.spec_from_file_location(script, opt.ROOT / "tools" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_parser()


def markdown_table(parser: opt.Parser) -> str:
    """The options as Markdown tables, one per group, for README."""
    lines = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        lines += [f"**{group.title}**", "", "| option | default | meaning |", "| --- | --- | --- |"]
        for action in actions:
            text, _, default = action.help.replace("%%", "%").rpartition(" [")
            if not action.option_strings:  # a positional argument, which has no default
                text, default = action.help, "-]"
            values = f" ({', '.join(action.choices)})" if action.choices else ""
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings or [action.dest])
            lines.append(f"| {flags} | `{default[:-1]}` | {text}{values} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> None:
    opt.make_parser(__doc__, {}).parse_args(argv)
    for name in READMES:
        text = (opt.ROOT / name).read_text(encoding="utf-8")
        (opt.ROOT / name).write_text(with_tables(text), encoding="utf-8")
        print(f"{len(MARKERS.findall(text))} tables in {name}")


if __name__ == "__main__":
    opt.run_script(main)
