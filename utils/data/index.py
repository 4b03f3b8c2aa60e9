"""What lies in a folder of images: which files, of which class, and what is left out and why.

Every file that is seen is either in the index or counted in the account, with a reason.
"""

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.account import Account
from utils.data.flat import FlatNames, readable
from utils.data.formats import REFUSED_ENDINGS, content_is_image, image_endings
from utils.data.layout import ClassFolder, layout_remarks, look_like_parts
from utils.data.overviews import overviews_among
from utils.errors import UserError, name_list
from utils.text import composed

HIDDEN = "hidden file"
IN_HIDDEN = "in a hidden folder"
SYSTEM_FILE = "file of the operating system"
IN_SYSTEM = "in a folder of the operating system"
NOT_AN_IMAGE = "not an image"
NOT_DECODED = "an image format that this Pillow does not decode; save it as PNG"
BESIDE_CLASSES = "beside the class folders, in none of them"
DANGLING = "link to a file that does not exist"
SECOND_PATH = "second path to an image of the set"
NOT_A_FILE = "neither a file nor a folder"
OVERVIEW = "overview of the images beside it, or mask of one, as generate.py writes it"
HIDDEN_FOLDER = "hidden"
SYSTEM_FOLDER = "of the operating system"
SECOND_FOLDER = "second path to a folder of the set"

FEWEST_CLASSES = 2  # that can be told apart

# Endings of images that Pillow decodes with a plug-in at best.
OTHER_IMAGE_ENDINGS = frozenset(
    b".heic .heif .avif .jxl .svg .svgz .psb .raw .exr .hdr .xcf .ai .wmf .emf .dcm .nii .fits "
    b".fit .jxr .wdp .bpg .djvu .pdf".split()
)

# What operating systems, file managers and NAS boxes keep beside the user's files; in lower case.
SYSTEM_FOLDERS = frozenset(
    {
        b"@eadir",
        b"@tmp",
        b"@sharebin",
        b"@recycle",
        b"@recently-snapshot",
        b"#recycle",
        b"#snapshot",
        b".snapshot",
        b".snapshots",
        b"$recycle.bin",
        b"system volume information",
        b"lost+found",
        b"lost.dir",
        b"found.000",
        b"__macosx",
        b".thumbnails",
        b".thumb",
        b".@__thumb",
        b".trash",
        b".trashes",
        b".spotlight-v100",
        b".fseventsd",
        b".temporaryitems",
        b".documentrevisions-v100",
        b".appledouble",
        b"network trash folder",
        b"temporary items",
    }
)
SYSTEM_FOLDER_PREFIXES = (b".trash-", b".sync.ffs")
SYSTEM_FILES = frozenset(
    {
        b"thumbs.db",
        b"ehthumbs.db",
        b"ehthumbs_vista.db",
        b"desktop.ini",
        b".ds_store",
        b"icon\r",
        b".directory",
        b".picasa.ini",
        b"picasa.ini",
        b".localized",
        b".nomedia",
    }
)


@dataclass
class FolderIndex:
    """The candidates for reading, in the order of the set: by class, then by path."""

    root: Path
    names: FlatNames  # relative to root
    sizes: np.ndarray  # (N,) int64, bytes
    times: np.ndarray  # (N,) int64: digests of the last changes of contents and of name
    labels: np.ndarray  # (N,) int32, into class_names; 0 for a set without classes
    class_names: list[str]  # NFC, sorted; classes without any candidate too
    account: Account
    remarks: list[str]  # on the layout

    def __len__(self) -> int:
        return len(self.names)

    def keep(self, places: np.ndarray) -> None:
        """Only the candidates at these places."""
        self.names = self.names.take(places)
        self.sizes, self.times = self.sizes[places], self.times[places]
        self.labels = self.labels[places]


def scan_folder(root: Path, conditional: bool | None) -> FolderIndex:
    """List the images below `root`. Nothing is decoded; files with an unknown ending are sniffed.

    Conditional: the folders in root are the classes. Otherwise everything below root is one set.
    None: conditional where there are classes to learn, which is at least two folders with images
    that are not called as the parts of a data set are (train, test).
    Links are followed, each place is visited once. UserError where a folder cannot be read, where
    there are no class folders, or where two of them become one name.
    """
    if conditional is None:
        return _scan_either_way(root)
    walker = _Walker(os.fsencode(root))
    if conditional:
        folders = _walk_classes(walker, root)
        class_names = [folder.name for folder in folders]
    else:
        folders = [ClassFolder("")]
        walker.walk(b"", 0, folders[0])
        walker.follow_links()
        class_names = []
    walker.leave_out_second_paths()
    if walker.followed_links:
        walker.sort()
    index = FolderIndex(
        root=root,
        names=FlatNames(walker.names),
        sizes=np.array(walker.sizes, np.int64),
        times=np.array(walker.times, np.int64),
        labels=np.array(walker.labels, np.int32),
        class_names=class_names,
        account=walker.account,
        remarks=layout_remarks(root, folders, conditional),
    )
    _leave_out(overviews_among(walker.names, root), OVERVIEW, index)
    return index


def _leave_out(places: list[int], reason: str, index: FolderIndex) -> None:
    for place in places:
        index.account.leave_out(index.names.raw(place), reason)
    if places:
        index.keep(np.setdiff1d(np.arange(len(index)), places))


def _scan_either_way(root: Path) -> FolderIndex:
    """With the classes, where there are some to learn; else as one set."""
    folders = _Walker(os.fsencode(root)).list_root()
    names = [readable(raw) for raw in folders]
    if len(names) >= FEWEST_CLASSES and not look_like_parts(names):
        index = scan_folder(root, conditional=True)
        beside = index.account.reasons.get(BESIDE_CLASSES)
        count = 0 if beside is None else beside.count
        if len(np.unique(index.labels)) >= FEWEST_CLASSES and count <= len(index):
            return index
        one_set = scan_folder(root, conditional=False)
        if count > len(index):
            one_set.remarks.append(
                f"more images lie beside the folders {name_list(names)} than in them: all are one "
                "set, without classes; --conditional True learns the folders"
            )
            return one_set
        one_set.remarks.append(
            f"of the folders {name_list(names)} fewer than two hold images: all are one set, "
            "without classes"
        )
        return one_set
    return scan_folder(root, conditional=False)


def _walk_classes(walker: "_Walker", root: Path) -> list[ClassFolder]:
    """Walk each folder in the root as a class; the classes in the order of their names."""
    folders = walker.list_root()
    if not folders:
        beside = walker.account.reasons.get(BESIDE_CLASSES)
        count = beside.count if beside else 0
        raise UserError(
            f"{root} has no class folders ({count:,} images lie in it): sort them into folders, "
            f"one per class, or pass --conditional False"
        )
    by_name: dict[str, bytes] = {}
    for raw in folders:
        name = composed(readable(raw))
        if name in by_name:
            first, second = readable(by_name[name]), readable(raw)
            raise UserError(
                f"dataset_path: the class folders {first!a} and {second!a} in {root} are one name, "
                f"{name}, and differ only in how its accents are stored: rename or merge one of "
                f"them"
            )
        by_name[name] = raw
    classes = [ClassFolder(name) for name in sorted(by_name)]
    for label, folder in enumerate(classes):
        raw = by_name[folder.name]
        if raw in walker.linked_classes:
            walker.links.append((raw + b"/", label, folder))
        else:
            walker.walk(raw + b"/", label, folder)
    walker.follow_links()
    return classes


class _Walker:
    """Walks folders and collects the candidates. Paths are bytes, as the file system has them."""

    def __init__(self, root: bytes):
        self.root = root
        self.real_root = os.path.realpath(root)
        self.names: list[bytes] = []
        self.sizes, self.times = array("q"), array("q")
        self.labels = array("i")
        self.account = Account()
        self.visited: set[bytes] = set()  # real paths of the folders
        self.links: deque[tuple[bytes, int, ClassFolder]] = deque()  # folders to follow at the end
        self.linked_classes: set[bytes] = set()
        self.linked_files: list[tuple[int, bytes]] = []  # reached through a link: place, real path
        self.followed_links = False
        self._endings = {os.fsencode(ending) for ending in image_endings()}
        self._refused = {os.fsencode(ending): why for ending, why in REFUSED_ENDINGS.items()}

    def list_root(self) -> list[bytes]:
        """The class folders in the root. Files beside them are left out."""
        self.visited.add(self.real_root)
        folders = []
        for entry in _sorted_entries(self.root):
            if not _safely(entry.is_dir):
                self._take_file(entry, b"", None, None, self.real_root, False)
            elif not self._skip_folder(entry, entry.name):
                folders.append(entry.name)
                if entry.is_symlink():
                    self.linked_classes.add(entry.name)
        return folders

    def walk(self, prefix: bytes, label: int, folder: ClassFolder, via_link: bool = False) -> None:
        """Everything below root/prefix, depth first, in the order of the names."""
        path = os.path.join(self.root, prefix)
        real = os.path.realpath(path) if via_link else os.path.join(self.real_root, prefix)
        real = real.rstrip(b"/") or b"/"
        if real in self.visited:
            self.account.skip_folder(prefix, SECOND_FOLDER)
            return
        self.visited.add(real)
        stack = [(_sorted_entries(path), prefix, real)]
        while stack:
            entries, prefix, real = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            if not _safely(entry.is_dir):
                direct = folder if len(stack) == 1 else None
                self._take_file(entry, prefix, label, direct, real, via_link)
                continue
            name = prefix + entry.name
            if self._skip_folder(entry, name):
                continue
            if len(stack) == 1:
                folder.subfolders.add(readable(entry.name))
            if entry.is_symlink():
                self.links.append((name + b"/", label, folder))
                continue
            inner_real = os.path.join(real, entry.name)
            if inner_real in self.visited:
                self.account.skip_folder(name, SECOND_FOLDER)
                continue
            self.visited.add(inner_real)
            stack.append((_sorted_entries(entry.path), name + b"/", inner_real))

    def follow_links(self) -> None:
        """Walk the folders that are links, last: what lies in the root itself keeps its place."""
        while self.links:
            prefix, label, folder = self.links.popleft()
            self.followed_links = True
            is_class = prefix.rstrip(b"/") in self.linked_classes
            inner = folder if is_class else ClassFolder(folder.name)
            self.walk(prefix, label, inner, via_link=True)

    def _skip_folder(self, entry: os.DirEntry, name: bytes) -> bool:
        """Whether a folder is the system's or hidden; then its files are counted and left out."""
        lower = entry.name.lower()
        if lower in SYSTEM_FOLDERS or lower.startswith(SYSTEM_FOLDER_PREFIXES):
            folder_reason, file_reason = SYSTEM_FOLDER, IN_SYSTEM
        elif entry.name.startswith(b"."):
            folder_reason, file_reason = HIDDEN_FOLDER, IN_HIDDEN
        else:
            return False
        self.account.skip_folder(name + b"/", folder_reason)
        if not entry.is_symlink():
            for here, _, names in os.walk(entry.path):  # what cannot be read is not counted
                relative = os.path.relpath(here, self.root)
                for file in names:
                    self.account.seen += 1
                    self.account.leave_out(os.path.join(relative, file), file_reason)
        return True

    def _take_file(
        self,
        entry: os.DirEntry,
        prefix: bytes,
        label: int | None,
        direct: ClassFolder | None,
        real: bytes,
        via_link: bool,
    ) -> None:
        """Add a file to the candidates, or to the account of those left out."""
        name = prefix + entry.name
        self.account.seen += 1
        reason = self._reason_against(entry)
        if reason is None and label is not None:
            try:
                about = entry.stat()
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
        if reason is not None or label is None:
            self.account.leave_out(name, reason or BESIDE_CLASSES)
            return
        if entry.is_symlink():
            self.linked_files.append((len(self.names), os.path.realpath(entry.path)))
        elif via_link:
            self.linked_files.append((len(self.names), os.path.join(real, entry.name)))
        if direct is not None:
            direct.direct_images += 1
        self.names.append(name)
        self.sizes.append(about.st_size)
        # Not the time of modification alone: a file that is renamed, or copied with its times,
        # keeps that.
        self.times.append(hash((about.st_mtime_ns, about.st_ctime_ns)))
        self.labels.append(label)

    def _reason_against(self, entry: os.DirEntry) -> str | None:
        """Why a file is no candidate; None where it is one."""
        lower = entry.name.lower()
        if lower in SYSTEM_FILES or lower.startswith(b"._"):
            return SYSTEM_FILE
        if not _safely(entry.is_file):
            return DANGLING if entry.is_symlink() else NOT_A_FILE
        if lower.startswith(b"."):
            return HIDDEN
        ending = os.path.splitext(lower)[1]
        if ending in self._endings:
            return None
        if ending in self._refused:
            return self._refused[ending]
        if content_is_image(os.fsdecode(entry.path)):
            return None
        return NOT_DECODED if ending in OTHER_IMAGE_ENDINGS else NOT_AN_IMAGE

    def leave_out_second_paths(self) -> None:
        """Keep one path to each file: the one without a link where there is one."""
        if not self.linked_files:
            return
        linked = {place for place, _ in self.linked_files}
        inside = os.path.join(self.real_root, b"")
        plain: set[bytes] = set()
        if any(real.startswith(inside) for _, real in self.linked_files):
            plain = {name for place, name in enumerate(self.names) if place not in linked}
        seen: set[bytes] = set()
        dropped = set()
        for place, real in self.linked_files:
            is_in_tree = real.startswith(inside) and real[len(inside) :] in plain
            if is_in_tree or real in seen:
                dropped.add(place)
                self.account.leave_out(self.names[place], SECOND_PATH)
            seen.add(real)
        self._reorder([place for place in range(len(self.names)) if place not in dropped])

    def sort(self) -> None:
        """Into the order that a walk in one go would have had."""

        def key(place: int) -> tuple[int, list[bytes]]:
            return self.labels[place], self.names[place].split(b"/")

        self._reorder(sorted(range(len(self.names)), key=key))

    def _reorder(self, places: list[int]) -> None:
        self.names = [self.names[place] for place in places]
        self.sizes = array("q", (self.sizes[place] for place in places))
        self.times = array("q", (self.times[place] for place in places))
        self.labels = array("i", (self.labels[place] for place in places))


def _sorted_entries(folder: bytes) -> Iterator[os.DirEntry]:
    """What lies in a folder, by name. UserError where it cannot be read."""
    try:
        with os.scandir(folder) as listing:
            entries: Iterable[os.DirEntry] = sorted(listing, key=_name_of)
    except OSError as error:
        raise UserError(
            f"the folder {readable(folder.rstrip(b'/'))} cannot be read: {error.strerror}"
        ) from None
    return iter(entries)


def _name_of(entry: os.DirEntry) -> bytes:
    return entry.name


def _safely(question: Callable[[], bool]) -> bool:
    """The answer of entry.is_dir or is_file; False for a link that leads in a circle."""
    try:
        return question()
    except OSError:
        return False
