"""What a folder holds: the files that are read, and those left out, counted by reason."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from protoseg.data.names import HEIF

_CURES = {
    **dict.fromkeys((*HEIF, ".hif"), "pip install pi-heif"),
    ".avif": "pip install -U pillow",
}


@dataclass
class LeftOut:
    """Files of a folder that are not read, by reason."""

    reasons: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """Note a file."""
        self.reasons.setdefault(reason, []).append(path)

    @property
    def count(self) -> int:
        """Files."""
        return sum(map(len, self.reasons.values()))

    def paths(self, suffixes: Iterable[str]) -> list[Path]:
        """Those with one of these suffixes, sorted."""
        wanted = tuple(suffixes)
        return sorted(p for some in self.reasons.values() for p in some if p.suffix.lower() in wanted)

    def describe(self, folder: Path) -> str:
        """One line, or nothing when nothing was left out."""
        if not self.reasons:
            return ""
        parts = []
        for reason, paths in sorted(self.reasons.items(), key=lambda item: (-len(item[1]), item[0])):
            shown = paths[0].relative_to(folder) if paths[0].is_relative_to(folder) else paths[0]
            parts.append(f"{len(paths)} {reason}, as {shown}")
        return f"{self.count} file(s) below {folder} are left out: " + "; ".join(parts)


@dataclass(frozen=True)
class Folder:
    """Files below a folder with a wanted suffix, sorted by folders and names, and the rest."""

    root: Path
    names: list[str]
    """Relative, with slashes."""
    left: LeftOut
    links: frozenset[str] = frozenset()
    """Those that are links."""

    @cached_property
    def files(self) -> list[Path]:
        """The files as paths; ``names`` cost a tenth of the memory."""
        return [self.root / name for name in self.names]


def scan_folder(root: Path, suffixes: Iterable[str], skip: Mapping[Path, str] | None = None) -> Folder:
    """Files below a folder whose suffix is wanted, also in folders that links lead to.

    A folder is read once, however many links lead to it, so that circles end.

    Args:
        root: The folder.
        suffixes: Wanted suffixes with their dot, lower case.
        skip: Resolved folders that are not searched, with the reason.

    Raises:
        OSError: If the folder cannot be listed.
    """
    scan = _Scan(root, frozenset(suffixes), skip or {})
    while scan.folders or scan.links:
        if not scan.folders:
            scan.follow(scan.links.pop(0))
            continue
        folder = scan.folders.pop()
        try:
            items = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise
            scan.left.add(f"folder(s) that cannot be opened ({error.strerror})", folder)
            continue
        scan.take(folder, items)
    # folder by folder: a slash comes before every letter
    scan.names.sort(key=lambda name: name.replace("/", "\0"))
    return Folder(root, scan.names, scan.left, frozenset(scan.file_links))


class _Scan:
    """What a search has found, and the folders that it has still to read."""

    def __init__(self, root: Path, wanted: frozenset[str], skip: Mapping[Path, str]) -> None:
        self.root, self.wanted, self.skip = root, wanted, skip
        self.left = LeftOut()
        self.names: list[str] = []
        self.file_links: list[str] = []
        self.folders = [root]
        # read last: a link to a folder of the tree's own is the second way to it
        self.links: list[Path] = []
        self.seen = {root.resolve()}

    def follow(self, link: Path) -> None:
        """Go where a link to a folder leads, unless it is read already or holds the whole tree."""
        place = link.resolve()
        if place in self.seen or self.root.resolve().is_relative_to(place):
            self.left.add("link(s) to a folder that is read already or lies above", link)
            return
        self.seen.add(place)
        self.folders.append(link)

    def take(self, folder: Path, items: Iterable[os.DirEntry[str]]) -> None:
        """Sort a folder's content into files, further folders and what is left out."""
        within = folder.relative_to(self.root).as_posix()
        prefix = "" if within == "." else f"{within}/"
        for item in items:
            # the type is in the listing: no file is looked at, and none becomes an object
            if not item.name.startswith(".") and _suffix(item.name) in self.wanted and item.is_file():
                self.names.append(prefix + item.name)
                if item.is_symlink():
                    self.file_links.append(prefix + item.name)
                continue
            path = folder / item.name
            if item.name.startswith("."):
                self.left.add("hidden", path)
            elif item.is_dir():
                self._enter(path, linked=item.is_symlink())
            elif not item.is_file():
                reason = "link(s) to nothing" if item.is_symlink() else "neither file nor folder"
                self.left.add(reason, path)
            else:
                self.left.add(_unwanted(path), path)

    def _enter(self, path: Path, *, linked: bool) -> None:
        place = path.resolve()
        reason = self.skip.get(place)
        if reason is not None:
            if reason:
                self.left.add(reason, path)
        elif linked:
            self.links.append(path)
        elif place not in self.seen:
            self.seen.add(place)
            self.folders.append(path)


def _suffix(name: str) -> str:
    """As ``Path.suffix``, lower case."""
    at = name.rfind(".")
    return name[at:].lower() if 0 < at < len(name) - 1 else ""


def _unwanted(path: Path) -> str:
    suffix = path.suffix.lower()
    if not suffix:
        return "without a suffix"
    cure = _CURES.get(suffix)
    return f"{suffix} ({cure})" if cure else suffix
