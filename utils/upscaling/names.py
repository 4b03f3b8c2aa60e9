"""Names of results: those of the sources, also where the ending must change."""

import os
from collections import Counter
from collections.abc import Sequence

from utils.text import composed


class OutputNames:
    """What each result is called. No two results of a folder have one name."""

    def __init__(self, names: Sequence[str]):
        self._sources = names
        self._own = {_as_compared(name) for name in names}
        self._stems = Counter(_as_compared(os.path.splitext(name)[0]) for name in names)
        self._by_ending: dict[str, dict[str, str]] = {}  # names of results, by their sources

    def fallback(self, source: str, ending: str) -> str:
        """The name of a result whose format cannot be the source's: the ending comes behind it,
        "a.gif.png", so that the name depends on the source's alone, whatever else lies there.
        """
        if os.path.splitext(source)[1].lower() == ending:
            return source
        result = f"{source}{ending}"
        while _as_compared(result) in self._own:
            result += ending
        return result

    def name(self, source: str, ending: str) -> str:
        """The name of a result with an ending such as ".png" (lower case).

        It is the source's own where that has this ending. Otherwise the ending is replaced, or put
        behind the other one where several sources differ in nothing else: "a.gif" beside "a.png"
        becomes "a.gif.png".
        """
        if ending not in self._by_ending:
            self._by_ending[ending] = self._results(ending)
        return self._by_ending[ending][source]

    def _results(self, ending: str) -> dict[str, str]:
        results = {}
        taken = set(self._own)
        for source in self._sources:
            stem, own_ending = os.path.splitext(source)
            if own_ending.lower() == ending:
                results[source] = source
                continue
            is_shared = self._stems[_as_compared(stem)] > 1
            result = f"{source if is_shared else stem}{ending}"
            while _as_compared(result) in taken:
                result += ending
            taken.add(_as_compared(result))
            results[source] = result
        return results


def _as_compared(name: str) -> str:
    """Names are one where a file system may think so."""
    return composed(name).casefold()
