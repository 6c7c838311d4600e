"""Finds the images of an export by the names that annotations give them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from protoseg.convert.source import IMAGE_SUFFIXES, Notes, Part, Sample, Tree, normal, part_of, walk
from protoseg.errors import DataError

_UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jp2", ".dcm", ".nii", ".svs", ".psd", ".exr")
_MASK_FOLDER = re.compile(
    r"(?i)^(.*mask.*|annotations?|labels?|label_?ids?|gt|gtfine|gtcoarse|ground_?truth|seg|semantic(_rgb)?"
    r"|instances?|panoptic|segmentation(class(aug)?|object)?|visuali[sz]ations?|previews?)$"
)
_MASK_FILE = re.compile(
    r"(?i)(_mask|_label|_labels|_seg|_gt|_labelids|_labeltrainids|_instanceids|_color)\.[a-z]+$"
)


class Images:
    """The images of an export, found by the names that annotations give them."""

    def __init__(self, tree: Tree, folder: Path | None, notes: Notes) -> None:
        """Raises DataError if the folder that the user named is none."""
        self.notes = notes
        self.folder = folder
        self._beside_file = tree.file is not None and folder is None
        self.base = tree.root if folder is None else normal(folder)
        if folder is not None and not folder.is_dir():
            raise DataError(f"--images {folder} is not a folder")
        names = tree.files if folder is None else sorted(walk(self.base, tree.skip))
        for name in names:
            if name.lower().endswith(_UNREAD_SUFFIXES):
                notes.leave_out(
                    f"files of a kind that is not read (*.{name.rpartition('.')[2].lower()})", name
                )
        self.names = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        self._by_path: dict[str, list[str]] = {}
        self._by_last: dict[str, list[str]] = {}
        for name in self.names:
            path = _key(name)
            for key in (path, _stem(path)):
                self._by_path.setdefault(key, []).append(name)
                self._by_last.setdefault(key.rpartition("/")[2], []).append(name)
        self.used: dict[str, str] = {}
        """Where images are annotated; masks are here, too, so that nobody takes them for images."""
        self.found = 0
        self.missing: list[str] = []

    def has(self, last: str) -> bool:
        """Whether some image has this file name."""
        return _key(last) in self._by_last

    def find(self, text: str, near: str = "", where: str = "", *, stem: bool = False) -> str | None:
        """Name of the image that an annotation calls ``text``; None (and counted) when it is not there.

        Tried are: the path below the annotation's folder (``near``), below the base, then the image whose
        path shares the most last parts, if there is only one.

        Args:
            text: Path or name in the annotation.
            near: Folder of the annotation, relative to the base.
            where: Place in the annotation.
            stem: Whether ``text`` has no suffix; so is a text without the suffix of an image.

        Raises:
            DataError: If the image has been found for another annotation.
        """
        text = text.replace("\\", "/")
        stem = stem or not text.lower().endswith(IMAGE_SUFFIXES)
        candidates: list[str] = []
        for place in (f"{near}/{text}", text):
            path = os.path.normpath(place).lstrip("/")
            candidates = candidates or _spelled(self._by_path.get(_key(path), []), path)
        if not candidates:
            candidates = self._by_last.get(_key(text).rpartition("/")[2], [])
        candidates = [name for name in candidates if not _like_mask(name)] or candidates
        if len(candidates) > 1:
            shared = [_shared_parts(_stem(_key(n)) if stem else _key(n), _key(text)) for n in candidates]
            candidates = [n for n, s in zip(candidates, shared, strict=True) if s == max(shared)]
        if len(candidates) == 1:
            return self._take(candidates[0], where or text)
        reason = "images whose name fits several files" if candidates else "images that are not there"
        self.notes.leave_out(reason, text)
        self.missing.append(text)
        return None

    def _take(self, name: str, where: str) -> str:
        if name in self.used:
            raise DataError(
                f"{name} is annotated twice, by {self.used[name]} and by {where}; give one of the files as "
                "SOURCE, or remove one annotation"
            )
        self.used[name] = where
        self.found += 1
        return name

    def path(self, name: str) -> Path:
        """File of an image."""
        return self.base / name

    def unannotated(self, parts: Callable[[str], Part] = part_of) -> list[Sample]:
        """The images that no annotation named, masks and the like left out.

        Where the source is an annotation file, only those in folders of annotated images.

        Raises:
            DataError: If annotations name images and none of them is there.
        """
        if self.missing and not self.found:
            place = "SOURCE" if self.folder is None else f"--images {self.folder}"
            raise DataError(
                f"none of the {len(self.missing)} images that the annotations name is below {place}, as "
                f"{self.missing[0]}: give their folder with --images FOLDER"
            )
        rest = []
        annotated = {name.rpartition("/")[0] for name in self.used}
        for name in self.names:
            folder, _, last = name.rpartition("/")
            # a folder that is named like one of masks, but whose images are annotated, holds images
            image = not _MASK_FILE.search(last) and (folder in annotated or not _like_mask(name))
            if name not in self.used and image and (folder in annotated or not self._beside_file):
                rest.append(Sample(self.path(name), name, part=parts(name)))
        return rest


def _like_mask(name: str) -> bool:
    *folders, last = name.split("/")
    return any(_MASK_FOLDER.match(part) for part in folders) or bool(_MASK_FILE.search(last))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _spelled(names: list[str], path: str) -> list[str]:
    """Of names that differ in case or composition, the one that is spelled as asked; else all."""
    return [name for name in names if path in (name, _stem(name))] or names


def _shared_parts(name: str, text: str) -> int:
    count = 0
    for a, b in zip(reversed(name.split("/")), reversed(text.split("/")), strict=False):
        if a != b:
            break
        count += 1
    return count
