"""The account of a folder: files seen = images used + files left out, each with a reason."""

from collections import Counter
from dataclasses import dataclass, field

from utils.data.flat import readable
from utils.data.formats import ending
from utils.errors import name_list

EXAMPLES = 3  # names kept for each reason


@dataclass
class LeftOutFiles:
    """The files that are left out for one reason."""

    endings: Counter[str] = field(default_factory=Counter)  # files per ending, in lower case
    examples: list[str] = field(default_factory=list)  # the first few names, relative to the root

    @property
    def count(self) -> int:
        return self.endings.total()

    def per_ending(self) -> str:
        """ "30 .png, 2 without an ending"."""
        parts = []
        for name, count in sorted(self.endings.items(), key=lambda item: (-item[1], item[0])):
            parts.append(f"{count:,} {name or 'without an ending'}")
        return name_list(parts)


@dataclass
class Account:
    """What happened to each file. `seen` counts all of them, those in skipped folders too."""

    seen: int = 0
    reasons: dict[str, LeftOutFiles] = field(default_factory=dict)
    skipped_folders: dict[str, list[str]] = field(default_factory=dict)  # reason: folder names

    def leave_out(self, name: bytes | str, reason: str) -> None:
        """Count one file that is not used. It must have been counted as seen."""
        files = self.reasons.setdefault(reason, LeftOutFiles())
        shown = readable(name)
        files.endings[readable(ending(shown))] += 1
        if len(files.examples) < EXAMPLES:
            files.examples.append(shown)

    def skip_folder(self, name: bytes | str, reason: str) -> None:
        self.skipped_folders.setdefault(reason, []).append(readable(name))

    def lines(self, role: str) -> list[str]:
        """What is left out, by reason, and folders that were skipped; `role` names the folder."""
        lines = []
        for reason, files in self.reasons.items():
            more = ", ..." if files.count > len(files.examples) else ""
            lines.append(
                f"{role}: left out {files.per_ending()}: {reason} "
                f"({name_list(files.examples)}{more})"
            )
        for reason, folders in self.skipped_folders.items():
            lines.append(f"{role}: skipped the folders {name_list(folders)}: {reason}")
        return lines

    def why_empty(self) -> str:
        """What was found in a folder without images."""
        if self.seen == 0:
            return "no files in it"
        parts = [f"{files.per_ending()} ({reason})" for reason, files in self.reasons.items()]
        return f"{self.seen:,} files, {'; '.join(parts)}"

    @property
    def left_out(self) -> int:
        return sum(files.count for files in self.reasons.values())

    @property
    def used(self) -> int:
        return self.seen - self.left_out
