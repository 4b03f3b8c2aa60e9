"""What only adds safety: fsync, locks, links. Where a file system lacks it, a run warns and works.

Network file systems (NFS, Lustre, SMB) and WSL each lack some of it. A real failure of the disk
(EIO, ENOSPC) is not hidden here: it is raised.
"""

import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import IO

from utils.console import say
from utils.errors import UserError
from utils.runs.names import LOCK

NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# A folder may also be closed to reading, or opened in a way that cannot be synchronised.
FOLDER_NOT_SUPPORTED = NOT_SUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
# What POSIX allows to be said of a lock that another process holds.
LOCK_IS_HELD = {errno.EAGAIN, errno.EACCES}

_warned: set[str] = set()  # the kinds of warning that this process has given


def reason(error: OSError) -> str:
    """What the system says of a failure, without the number: "No space left on device"."""
    return error.strerror or str(error) or type(error).__name__


def warn_once(kind: str, sentence: str) -> None:
    """Print a warning, unless this process has given one of this kind before."""
    if kind in _warned:
        return
    _warned.add(kind)
    say(f"warning: {sentence}")


def sync_file(file: IO[bytes], path: Path) -> None:
    """Have the disk hold what was written to the file. OSError where the disk fails."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        warn_once(
            "file",
            f"the file system of {path.parent} cannot confirm that a file is on the disk "
            f"({reason(error)}); a power failure may cost the newest checkpoint",
        )


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in the folder. OSError where the disk fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in FOLDER_NOT_SUPPORTED:
            raise
        warn_once(
            "folder",
            f"the file system of {folder} cannot confirm that a renamed file is on the disk "
            f"({reason(error)}); a power failure may bring the previous checkpoint back",
        )


def keep_copy(path: Path, copy: Path) -> None:
    """Give the file a second name, in the place of an earlier file of that name.

    Where there are no hard links the file is renamed, so for a moment it has the second name only.
    """
    link = copy.with_name(copy.name + ".tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, copy)
    except OSError as error:
        os.replace(path, copy)
        warn_once(
            "link",
            f"the file system of {path.parent} has no hard links ({reason(error)}); while a "
            f"checkpoint is being replaced, {copy.name} is the only one",
        )


def add_name(path: Path, name: Path) -> None:
    """Have the file under a second name too, in the place of an earlier file of that name: as a
    hard link, or where there are none as a copy. OSError where the disk fails.
    """
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        with open(path, "rb") as source, open(temporary, "wb") as copy:
            shutil.copyfileobj(source, copy)
            sync_file(copy, temporary)
    os.replace(temporary, name)


class FolderLock:
    """Keeps a second writer out of a folder, from construction until `close`.

    There are two proofs of ownership. The lock on the file `.lock` refuses a second process at
    once, where the file system has locks. The token that `claim` writes into `.owner` shows before
    each save that the folder is still this run's: that nobody has moved it away and started another
    run in its place. Inode numbers would not do: some file systems renumber them. Nor could the
    token lie in `.lock`, since reading it there would drop the lock: POSIX does so as soon as the
    process closes any descriptor of the file.
    """

    def __init__(self, folder: Path):
        """UserError where another process holds the lock, OSError where nothing can be written."""
        self.folder = folder
        self.owner = folder / ".owner"
        self.token = secrets.token_hex(16)
        self._is_claimed = False
        self._file = open(folder / LOCK, "a")
        try:
            self._lock()
        except UserError:
            self._file.close()
            raise

    def claim(self) -> None:
        """Make the folder this run's: any other run that writes here ends at its next `check`."""
        self.owner.write_bytes(self.token.encode())
        self._is_claimed = True

    def _lock(self) -> None:
        try:
            # Not flock: workers that outlive a killed run for some seconds would keep holding it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in LOCK_IS_HELD:
                raise UserError(
                    f"the run {self.folder} is being written by another process; choose another "
                    "--run_name"
                ) from None
            warn_once(
                "lock",
                f"the file system of {self.folder} has no locks ({reason(error)}): nothing keeps "
                "two processes from writing there, such as two runs with the same --run_name",
            )

    def check(self) -> None:
        """UserError where another run has taken the folder; OSError where it cannot be read."""
        if not self._is_claimed:
            self.claim()
        if self.owner.read_bytes() != self.token.encode():
            raise UserError(f"another run has taken the place of this one in {self.folder}")

    def close(self) -> None:
        """Let other processes write into the folder."""
        self._file.close()
