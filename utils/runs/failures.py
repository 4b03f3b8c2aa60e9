"""A full or failing disk does not end a run: what could not be written is said once."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from utils.console import say
from utils.errors import UserError
from utils.runs.safeguards import reason


class Failures:
    """Which files of a run folder could not be written when that was last tried."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def forget(self, name: str) -> None:
        """Have the file tried again."""
        self._names.discard(name)

    @contextlib.contextmanager
    def tolerated(self, name: str) -> Iterator[None]:
        """Around the writing of a file: where that fails, training continues. The failure is said
        if the file could be written the last time.
        """
        try:
            yield
        except (OSError, UserError) as error:
            if name in self._names:
                return
            self._names.add(name)
            why = reason(error) if isinstance(error, OSError) else str(error)
            say(f"warning: {self.folder / name} could not be written: {why}; training continues")
        else:
            self._names.discard(name)
