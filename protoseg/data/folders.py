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
    wanted = frozenset(suffixes)
    left = LeftOut()
    names: list[str] = []
    file_links: list[str] = []
    skip = skip or {}
    start = root.resolve()
    seen = {start}
    links: list[Path] = []
    folders = [root]
    while folders or links:
        if not folders:
            # folders of their own first: a link to one of them is the second way to it
            link = links.pop(0)
            place = link.resolve()
            if place in seen or start.is_relative_to(place):
                left.add("link(s) to a folder that is read already or lies above", link)
                continue
            seen.add(place)
            folders.append(link)
        folder = folders.pop()
        try:
            items = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise
            left.add(f"folder(s) that cannot be opened ({error.strerror})", folder)
            continue
        within = folder.relative_to(root).as_posix()
        prefix = "" if within == "." else f"{within}/"
        for item in items:
            # the type is in the listing: no file is looked at, and none becomes an object
            if not item.name.startswith(".") and _suffix(item.name) in wanted and item.is_file():
                names.append(prefix + item.name)
                if item.is_symlink():
                    file_links.append(prefix + item.name)
                continue
            path = folder / item.name
            if item.name.startswith("."):
                left.add("hidden", path)
            elif item.is_dir():
                place = path.resolve()
                reason = skip.get(place)
                if reason is not None:
                    if reason:
                        left.add(reason, path)
                elif item.is_symlink():
                    links.append(path)
                elif place not in seen:
                    seen.add(place)
                    folders.append(path)
            elif not item.is_file():
                left.add("link(s) to nothing" if item.is_symlink() else "neither file nor folder", path)
            else:
                left.add(_unwanted(path), path)
    # folder by folder: a slash comes before every letter
    names.sort(key=lambda name: name.replace("/", "\0"))
    return Folder(root, names, left, frozenset(file_links))


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
