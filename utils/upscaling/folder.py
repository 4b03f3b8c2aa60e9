"""A folder of images, and the one that receives the enlarged ones."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.data.account import Account
from utils.data.flat import readable
from utils.data.index import scan_folder
from utils.data.opening import upright_size
from utils.errors import UserError
from utils.upscaling.names import OutputNames
from utils.upscaling.output import KINDS, PNG, WRITTEN_ENDINGS, written_size


@dataclass(frozen=True)
class Job:
    """One image to enlarge."""

    source: Path
    wanted: Path  # where the result goes
    png: Path  # where it goes if the format of `wanted` cannot hold it
    shown: str  # its name in messages

    def has_result(self, path: Path, scale: int) -> bool:
        """Whether a file is there that has the size of the result and is not older than the source.

        A file is written under another name until all of it is there, so it is whole.
        """
        try:
            if _last_change(path) < _last_change(self.source):
                return False
            height, width = upright_size(self.source)
            return written_size(path) == (height * scale, width * scale)
        except Exception:  # not there, or no image: Pillow's plugins raise what they like
            return False


def _last_change(path: Path) -> int:
    """When a file was written or, with the time that it had, put in another one's place."""
    facts = os.stat(path)
    return max(facts.st_mtime_ns, facts.st_ctime_ns)


class FolderJobs:
    """The images below the folder `source`, each with its place below the folder `out`.

    What lies in `out` is no source, even where `out` lies in `source`. UserError where the two
    folders do not go together, or there are no images.
    """

    def __init__(self, source: Path, out: Path, ending: str | None):
        _check_folders(source, out)
        self._source = source
        self._out = out
        self._ending = ending  # such as ".png"; None: the source's own
        index = scan_folder(source, conditional=False)
        self.account: Account = index.account
        inside_out = os.path.join(os.path.realpath(out), "")
        self._names = [
            name
            for name in index.names
            if not os.path.realpath(source / name).startswith(inside_out)
        ]
        self.results_left_out = len(index) - len(self._names)
        if not self._names:
            found = f"the {self.results_left_out:,} images in it lie in OUT"
            if self.results_left_out == 0:
                found = index.account.why_empty()
            raise UserError(f"IN {source} holds no images: {found}")

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Job]:
        names = OutputNames(self._names)
        for name in self._names:
            if self._ending is None:
                wanted, png = name, names.fallback(name, PNG)
            else:
                wanted, png = names.name(name, self._ending), names.name(name, PNG)
            yield Job(
                source=self._source / name,
                wanted=self._out / wanted,
                png=self._out / png,
                shown=readable(name),
            )


def _check_folders(source: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"IN {source} is a folder, but OUT {out} is a file: name a folder")
    real_source, real_out = os.path.realpath(source), os.path.realpath(out)
    if real_source == real_out:
        raise UserError(f"IN and OUT are the same folder, {source}: name another OUT")
    if real_source.startswith(os.path.join(real_out, "")):
        raise UserError(
            f"IN {source} lies in OUT {out}, so that results could take the place of images: name "
            "another OUT"
        )


def single_job(source: Path, out: Path, ending: str | None) -> Job:
    """The job for one file; `out` is a folder that exists, or the name of the result.

    UserError where that name has no ending of a format that can be written, or where the result
    would take the place of the source.
    """
    if out.is_dir():
        names = OutputNames([source.name])
        wanted = out / (names.name(source.name, ending) if ending else source.name)
        png = out / names.fallback(source.name, PNG)
    else:
        _check_ending(out, ending)
        wanted = out
        png = out.with_suffix(PNG)
    if _is_same(wanted, source):
        raise UserError(f"IN and OUT are the same file, {source}: name another OUT")
    if _is_same(png, source):
        png = wanted.with_name(f"{wanted.name}{PNG}")
    return Job(source, wanted, png, readable(source.name))


def _check_ending(out: Path, ending: str | None) -> None:
    own = out.suffix.lower()
    if own not in WRITTEN_ENDINGS:
        found = f"ends in {own}" if own else "is no folder that exists, and has no ending"
        raise UserError(
            f"OUT {out} {found}; results can be written as {', '.join(WRITTEN_ENDINGS)}"
        )
    if ending is not None and KINDS.get(own) is not KINDS.get(ending):
        raise UserError(f"--image_format {ending[1:]}, but OUT {out} ends in {own}: leave one out")


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
