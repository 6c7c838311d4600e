"""Pairs the images and masks of folders, and keeps masks out of the unlabelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protoseg.data.folders import Folder, scan_folder
from protoseg.data.lines import CITYSCAPES_IMAGE, CITYSCAPES_MASK, Entry
from protoseg.data.names import (
    IMAGE_SUFFIXES,
    MASK_ENDINGS,
    MASK_SUFFIXES,
    Places,
    beside_ending,
    ends_with,
    fitting_endings,
    plain,
)
from protoseg.data.text import masks_needed
from protoseg.errors import DataError

_ANNOTATIONS = (".json", ".xml")
Index = dict[str, list[Path]]
"""Files by what their relative names begin with, sorted."""


@dataclass
class Pairs:
    """Pairs found, and what was wrong."""

    family: str
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def pair_folders(
    images: Path,
    masks: Path,
    setting: str,
    image_suffix: str | None,
    mask_suffix: str | None,
    city_mask: str = CITYSCAPES_MASK,
) -> Pairs:
    """Pair the files of two folders (or of one) by their relative names.

    Without ``mask_suffix`` a mask has the name of its image, or the name with one of ``MASK_ENDINGS``,
    whichever pairs most. In one folder, of two files of one name that which cannot be a mask is the image.

    Args:
        images: Folder of images.
        masks: Folder of masks, perhaps the same one.
        setting: What to call them in messages.
        image_suffix: ``data.image_suffix``.
        mask_suffix: ``data.mask_suffix``.
        city_mask: What masks of Cityscapes end in.

    Raises:
        DataError: If a folder holds nothing, or there is no pair at all.
    """
    if images.resolve() == masks.resolve():
        both = _scan(images, tuple(dict.fromkeys((*IMAGE_SUFFIXES, *MASK_SUFFIXES))), setting)
        folders = [both]
        image_index, mask_index, ending = _divide(both, image_suffix, mask_suffix)
    else:
        skip = {images.resolve(): "", masks.resolve(): ""}  # one may lie in the other
        folders = [
            _scan(images, IMAGE_SUFFIXES, setting, skip),
            _scan(masks, MASK_SUFFIXES, setting, skip, images),
        ]
        image_index = _index(folders[0], image_suffix)
        ending = mask_suffix or _usual_ending(image_index, folders[1])
        mask_index = _index(folders[1], ending)
    pairs = Pairs(f"folder pair, masks end in {ending}" if ending and not mask_suffix else "folder pair")
    _pair(pairs, _single(image_index, setting), _single(mask_index, setting), folders, setting, city_mask)
    if not pairs.entries:
        raise DataError(_no_pair(image_index, mask_index, folders, setting))
    pairs.warnings += [text for folder in folders if (text := folder.left.describe(folder.root))]
    return pairs


def unlabeled_folder(
    folder: Path, setting: str, labeled: Sequence[Entry], mask_suffix: str | None
) -> tuple[list[str], list[str]]:
    """Images below a folder, without those that are masks of others, and what was left out.

    Args:
        folder: The folder.
        setting: What to call it in messages.
        labeled: Entries whose masks, and whose folders of masks, are no images.
        mask_suffix: ``data.mask_suffix``.

    Returns:
        Relative names in sorted order, and remarks.

    Raises:
        DataError: If the folder holds no image, or two of the same stem.
    """
    found = _scan(folder, IMAGE_SUFFIXES, setting)
    pairs = [
        (entry.image.resolve(), entry.mask.resolve())
        for entry in labeled
        if isinstance(entry.image, Path) and isinstance(entry.mask, Path)
    ]
    masks = {mask for _, mask in pairs}
    mask_names = {mask.name for mask in masks}
    mask_folders = {mask.parent for _, mask in pairs} - {image.parent for image, _ in pairs}
    beside = {
        mask.stem.removeprefix(image.stem)
        for image, mask in pairs
        if image.parent == mask.parent and mask.stem.startswith(image.stem)
    }
    endings = [mask_suffix] if mask_suffix else [*MASK_ENDINGS, *(beside - {"", *MASK_ENDINGS})]
    # stems are kept only where a file may be the mask of one of them
    names = [plain(name) for name in found.names]
    wanted = {ends_with(name, end) for name in names for end in fitting_endings(name, endings)}
    stems = {stem for name in names if (stem := ends_with(name, None)) in wanted} if wanted else set()
    lossy = {ends_with(name, None) for name in names if "" in beside and not _may_be_mask(name)}
    places = Places()
    images = []
    for name, written in zip(names, found.names, strict=True):
        last = written.rpartition("/")[2]
        ending = beside_ending(name, stems, endings)
        # only a link can be a mask by another name
        linked = written in found.links
        place = places.resolve(folder / written) if masks and (linked or last in mask_names) else None
        parent = place.parent if place is not None else places.folder(folder, written) if masks else None
        if place is not None and place in masks:
            found.left.add("mask(s) of labelled images", folder / written)
        elif parent in mask_folders:
            found.left.add("in a folder of masks", folder / written)
        elif ending is not None:
            found.left.add(f"mask(s) beside their images (ending {ending})", folder / written)
        elif "" in beside and ends_with(name, None) in lossy and _may_be_mask(name):
            found.left.add("mask(s) beside their images", folder / written)
        else:
            images.append(written)
    text = found.left.describe(folder)
    if not images:
        raise DataError(f"{setting}: {folder} has no image but masks; {text}")
    _refuse_same_stems(images, setting)
    return images, [text] if text else []


def _may_be_mask(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIXES)


def _refuse_same_stems(names: Sequence[str], setting: str) -> None:
    """Refuse two files of one stem; without a set of all stems, of which there may be millions."""
    hashes = np.fromiter((hash(plain(name).rpartition(".")[0]) for name in names), np.int64, len(names))
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == len(names):
        return
    again = set(values[counts > 1].tolist())
    index: Index = {}
    for name in names:
        stem = plain(name).rpartition(".")[0]
        if hash(stem) in again:
            index.setdefault(stem, []).append(Path(name))
    _single(index, setting)


def _scan(
    folder: Path,
    suffixes: Collection[str],
    setting: str,
    skip: dict[Path, str] | None = None,
    images: Path | None = None,
) -> Folder:
    """Files of a folder; ``images`` is the folder of images where this one is that of masks."""
    if not folder.is_dir():
        raise DataError(f"{setting}: {folder} is not a folder")
    found = scan_folder(folder, suffixes, skip)
    if not found.names:
        text = f"{setting}: {folder} has no file ending in {', '.join(suffixes)}"
        if found.left.count:
            text += f"; {found.left.describe(folder)}"
        if found.left.paths(_ANNOTATIONS):
            text += f"; {masks_needed(folder, images)}"
        if images is not None and found.left.paths((".jpg", ".jpeg")):
            text += "; JPEG changes the values of masks: save them as PNG"
        raise DataError(text)
    return found


def _index(folder: Folder, suffix: str | None) -> Index:
    """Files that end in the suffix by what is before it; the others are noted as left out."""
    index: Index = {}
    for path in folder.files:
        key = ends_with(path.relative_to(folder.root).as_posix(), suffix)
        if key is not None:
            index.setdefault(plain(key), []).append(path)
        else:
            folder.left.add(f"not ending in {suffix}", path)
    return index


def _usual_ending(images: Collection[str], masks: Folder, *, apart: bool = True) -> str | None:
    """The ending that pairs most masks; None where none does, or the plain name as many (``apart``)."""
    names = [plain(path.relative_to(masks.root).as_posix()) for path in masks.files]
    counts = {end: sum(ends_with(name, end) in images for name in names) for end in MASK_ENDINGS}
    best = max(MASK_ENDINGS, key=lambda end: counts[end])
    alone = sum(ends_with(name, None) in images for name in names) if apart else 0
    return best if counts[best] > alone else None


def _divide(
    both: Folder, image_suffix: str | None, mask_suffix: str | None
) -> tuple[Index, Index, str | None]:
    """Images and masks of one folder, and what masks end in."""
    names = {path: plain(path.relative_to(both.root).as_posix()) for path in both.files}
    possible = {
        key for path, name in names.items()
        if path.suffix.lower() in IMAGE_SUFFIXES and (key := ends_with(name, image_suffix)) is not None
    }  # fmt: skip
    ending = mask_suffix or _usual_ending(possible, both, apart=False)
    alone = Counter(ends_with(name, None) for name in names.values())
    images: Index = {}
    masks: Index = {}
    for path, name in names.items():
        key, stem = ends_with(name, ending), ends_with(name, None) or ""
        can_be_mask = path.suffix.lower() in MASK_SUFFIXES
        if ending is not None:
            is_mask = can_be_mask and key in possible and (key != stem or ending == mask_suffix)
        elif image_suffix:
            is_mask = can_be_mask and ends_with(name, image_suffix) is None
        else:
            is_mask = can_be_mask and alone[stem] > 1
        image_key = ends_with(name, image_suffix)
        if is_mask:
            masks.setdefault(key or stem, []).append(path)
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            both.left.add("mask(s) without an image", path)
        elif image_key is None:
            both.left.add(f"not ending in {image_suffix}", path)
        else:
            images.setdefault(image_key, []).append(path)
    return images, masks, ending


def _pair(
    pairs: Pairs,
    images: dict[str, Path],
    masks: dict[str, Path],
    folders: Sequence[Folder],
    setting: str,
    city_mask: str,
) -> None:
    """Pair by name, and by name in another letter case where only one mask can be meant."""
    at, folder, left = folders[0].root, folders[-1].root, folders[-1].left
    folded = Counter(key.casefold() for key in masks)
    by_case = {key.casefold(): key for key in masks if folded[key.casefold()] == 1}
    annotations = {
        plain(p.relative_to(folder).with_suffix("").as_posix()): p for p in left.paths(_ANNOTATIONS)
    }
    used, respelled = set(), []
    for key, image in images.items():
        city = key.removesuffix(CITYSCAPES_IMAGE) + city_mask
        name = next((k for k in (key, city, by_case.get(key.casefold())) if k in masks), None)
        if name is None:
            text = f"{setting}: {image} has no mask {key}.png below {folder}"
            if key in annotations:
                text += f", only {annotations[key].name}"
                text += f"; {masks_needed(folder, at)}" if not pairs.problems else ""
            pairs.problems.append(text)
            continue
        if name not in (key, city):
            respelled.append(masks[name])
        used.add(name)
        pairs.entries.append(Entry(image, masks[name]))
    if respelled:
        pairs.warnings.append(
            f"{len(respelled)} mask(s) are named in another letter case than their images, as {respelled[0]}"
        )
    orphans = [] if "gtFine" in folder.parts else sorted(set(masks) - used)
    if orphans:
        pairs.warnings.append(f"{len(orphans)} mask(s) have no image, as {masks[orphans[0]]}")


def _no_pair(images: Index, masks: Index, folders: Sequence[Folder], setting: str) -> str:
    """Why no image has a mask, and what to do."""
    at, mask_folder, rest = folders[0].root, folders[-1].root, folders[-1].left
    if rest.paths(_ANNOTATIONS):
        first = rest.paths(_ANNOTATIONS)[0].name
        found = f"{mask_folder} holds annotations, as {first}, and no mask of an image"
        return f"{setting}: {found}; {masks_needed(mask_folder, at)}"
    if not images or not masks:
        missing = "image" if not images else "mask"
        left = rest.describe(mask_folder) or "every file was taken for the other kind"
        return (
            f"{setting}: no {missing} was found in {at} and {mask_folder}: {left}; set data.image_suffix and "
            "data.mask_suffix to what images and masks end in, or write a list"
        )
    return (
        f"{setting}: no image below {at} has a mask of the same stem below {mask_folder} (as "
        f"{next(iter(images))} and {next(iter(masks))}); set data.mask_suffix to what masks end in after the "
        "stem of their image, rename one side, or write a list"
    )


def _single(index: Index, setting: str) -> dict[str, Path]:
    for key, paths in index.items():
        if len(paths) > 1:
            raise DataError(
                f"{setting}: {paths[0].name} and {paths[1].name} have the same stem ({key}); keep one image "
                "and one mask of a stem, or name image and mask in a list"
            )
    return {key: paths[0] for key, paths in index.items()}
