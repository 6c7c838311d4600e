"""Looks through a tar once: where each image and its mask lie, by the naming rule of WebDataset.

Files of one name up to the first dot are one sample: ``a/0001.jpg`` and ``a/0001.png`` or
``a/0001.mask.png``.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from protoseg.data.lines import MASK_FOLDERS
from protoseg.data.names import IMAGE_SUFFIXES, MASK_ENDINGS, MASK_SUFFIXES, beside_ending, ends_with
from protoseg.data.shards.table import Rows, Table
from protoseg.data.storage import opened
from protoseg.errors import DataError

_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""WebDataset's own rule for a key and an extension."""
_MASK_WORDS = frozenset(end.strip("_-.") for end in MASK_ENDINGS if not end.endswith(".png"))
_IMAGE_WORDS = frozenset({"image", "img", "input", "rgb"})
Place = tuple[int, int]
Files = dict[str, Place]
"""Offset and size of the files of one sample, by extension."""


def scan_tar(place: str, size: int, image_suffix: str | None, mask_suffix: str | None) -> Table:
    """Table of a tar's images.

    Args:
        place: Path or URL.
        size: Its bytes.
        image_suffix: ``data.image_suffix``.
        mask_suffix: ``data.mask_suffix``.

    Raises:
        DataError: If it cannot be read, is cut off, or its samples are ambiguous.
    """
    rows = Rows()
    samples = _samples(place, size, rows)
    keys = set(samples)
    _join_masks_beside(place, samples, keys)
    endings = _Endings(image_suffix, mask_suffix)
    chosen = {key: endings.choose(f"{place}: {key}", key, files) for key, files in samples.items()}
    # a set whose masks are plain .png beside .jpg has no images that are .png alone
    plain_masks = any(
        mask is not None and "." not in mask and image is not None for image, mask in chosen.values()
    )
    for key, (image, mask) in chosen.items():
        if image is None:
            what = "mask(s) without an image" if mask else "sample(s) without an image"
            rows.leave_out(what, f"{key}.{mask or next(iter(samples[key]))}")
        elif plain_masks and mask is None and f".{image}" in MASK_SUFFIXES and not image_suffix:
            rows.leave_out(f"file(s) of the masks' kind without an image (.{image})", f"{key}.{image}")
        else:
            files = samples[key]
            rows.add(
                key, files[image], f".{image}", files[mask] if mask else None, f".{mask}" if mask else ""
            )
    return rows.table()


def _samples(place: str, size: int, rows: Rows) -> dict[str, Files]:
    samples: dict[str, Files] = {}
    end = 0
    with opened(place) as file:
        try:
            for info in _headers(file):
                end = info.offset_data + (info.size + 511) // 512 * 512 * info.isreg()
                match = _SAMPLE.fullmatch(info.name.removeprefix("./"))
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    rows.leave_out("link(s) and the like within tars", info.name)
                elif match is None or "__MACOSX/" in info.name:
                    rows.leave_out("file(s) without a key and an extension", info.name)
                elif (extension := match[2].lower()) in (files := samples.setdefault(match[1], {})):
                    raise DataError(
                        f"{place} holds {info.name} twice; keys must be unique within a shard: write it anew"
                    )
                else:
                    files[extension] = (info.offset_data, info.size)
        except tarfile.TarError as error:
            raise DataError(f"{place} is damaged or cut off ({error}); copy or write it anew") from error
    if end + 512 > size:
        raise DataError(
            f"{place} has no end mark: it was cut off while it was written or copied; copy or write it anew"
        )
    if not samples:
        raise DataError(f"{place} holds no file with a key and an extension, as 000017.jpg")
    return samples


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            # tarfile keeps every header it has read
            tar.members = []  # type: ignore[attr-defined]
            yield info


def _join_masks_beside(place: str, samples: dict[str, Files], keys: set[str]) -> None:
    """Make ``a_mask.png`` the mask of ``a``; refuse folders of masks."""
    for key in list(samples):
        folders = PurePosixPath(key).parts[:-1]
        masks = next((part for part in folders if part in MASK_FOLDERS), None)
        if masks is not None:
            name = f"{key}.{next(iter(samples[key]))}"
            raise DataError(
                f"{place}: masks are in a folder of their own ({name}), which is no WebDataset: unpack it "
                "(tar -xf) and use folders, or write image and mask under one key (0001.jpg, 0001.mask.png)"
            )
        for extension, where in list(samples[key].items()):
            name = f"{key}.{extension}"
            ending = beside_ending(name, keys, MASK_ENDINGS)
            base = ends_with(name, ending) if ending else None
            if base is not None and base != key and ending:
                files = samples[base]
                files.setdefault(f"{ending.strip('_-.')}.{extension}", where)
                del samples[key][extension]
        if not samples[key]:
            del samples[key]


class _Endings:
    """Tells image and mask of a sample by their extensions."""

    def __init__(self, image_suffix: str | None, mask_suffix: str | None) -> None:
        self.image_suffix, self.mask_suffix = image_suffix, mask_suffix

    def choose(self, where: str, key: str, files: Files) -> tuple[str | None, str | None]:
        """Extensions of image and mask.

        Raises:
            DataError: If there are several of a kind.
        """
        pictures = [e for e in files if _suffix(e) in IMAGE_SUFFIXES or _suffix(e) in MASK_SUFFIXES]
        masks = [e for e in pictures if self._is_mask(key, e)]
        images = [e for e in pictures if e not in masks and self._is_image(key, e)]
        if len(images) == 2 and not masks and not self.image_suffix:
            lossy = [e for e in images if _suffix(e) not in MASK_SUFFIXES]
            if len(lossy) == 1:
                masks = [e for e in images if e not in lossy]
                images = lossy
        if len(images) > 1 or len(masks) > 1:
            several, setting = (images, "image_suffix") if len(images) > 1 else (masks, "mask_suffix")
            raise DataError(
                f"{where} has {', '.join(f'.{e}' for e in several)}, and one is wanted; set "
                f"data.{setting}=.{several[0]} or data.{setting}=.{several[1]}"
            )
        return next(iter(images), None), next(iter(masks), None)

    def _is_mask(self, key: str, extension: str) -> bool:
        if _suffix(extension) not in MASK_SUFFIXES:
            return False
        if self.mask_suffix:
            return ends_with(f"{key}.{extension}", self.mask_suffix) is not None
        first, dot, _ = extension.partition(".")
        return bool(dot) and first in _MASK_WORDS

    def _is_image(self, key: str, extension: str) -> bool:
        if _suffix(extension) not in IMAGE_SUFFIXES:
            return False
        if self.image_suffix:
            return ends_with(f"{key}.{extension}", self.image_suffix) is not None
        first, dot, _ = extension.partition(".")
        return not dot or first in _IMAGE_WORDS


def _suffix(extension: str) -> str:
    return "." + extension.rpartition(".")[2]
