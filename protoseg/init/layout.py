"""Finds images and their masks in a folder of any usual layout: by names, else by what files hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from protoseg.data.folders import scan_folder
from protoseg.data.lines import CITYSCAPES_IMAGE, CITYSCAPES_MASK, MASK_FOLDERS, Entry
from protoseg.data.maskfiles import load_mask
from protoseg.data.names import IMAGE_SUFFIXES, MASK_ENDINGS, MASK_SUFFIXES, beside_ending, ends_with, plain
from protoseg.data.pictures import PLAIN
from protoseg.errors import DataError

PARTS = {
    "labeled": ("labeled", "labelled", "train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "unlabeled": ("unlabeled", "unlabelled"),
    "test": ("test", "testing"),
}
"""What folders and lists of a part are called."""
_MASK_WORDS = {
    *(name.lower() for name in MASK_FOLDERS), "gtfine", "groundtruth", "ground_truth", "segmentations",
    "segmentation_masks", "segmentationobject", "labelids", "segmaps", "label_images",
}  # fmt: skip
_NOT_CLASSES = ("object", "instance")
_SAMPLES = 3
_MASK_VALUES = 32
"""Values or colours up to which a picture looks drawn."""


@dataclass(frozen=True)
class FileEntry(Entry):
    """An entry whose files are files of their own: a layout is looked for among these only."""

    image: Path
    mask: Path | None


def file_entries(entries: Iterable[Entry]) -> list[FileEntry]:
    """The entries whose files are none within shards: all of those that a folder's lists name."""
    return [
        FileEntry(entry.image, entry.mask)
        for entry in entries
        if isinstance(entry.image, Path) and (entry.mask is None or isinstance(entry.mask, Path))
    ]


@dataclass
class Layout:
    """What a folder holds."""

    pairs: list[FileEntry] = field(default_factory=list)
    """Images with a mask, by path."""
    images: list[Path] = field(default_factory=list)
    """Images without one."""
    remarks: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """What could have been meant otherwise."""


def part_of(path: PurePosixPath) -> str | None:
    """The part that a folder in a relative path names, or None."""
    words = [word.lower() for word in path.parts[:-1]]
    return next((part for part, names in PARTS.items() if any(name in words for name in names)), None)


def in_mask_folder(path: PurePosixPath) -> bool:
    """Whether a relative path lies in a folder that is called as folders of masks are."""
    return any(word.lower() in _MASK_WORDS for word in path.parts[:-1])


def find_layout(root: Path, masks: Path | None = None, skip: Iterable[Path] = ()) -> Layout:
    """Pair images and masks below a folder.

    Args:
        root: The folder.
        masks: Folder of masks, where the caller knows it.
        skip: Folders of results.

    Raises:
        OSError: If the folder cannot be listed.
    """
    suffixes = {*IMAGE_SUFFIXES, *MASK_SUFFIXES}
    scanned = scan_folder(root, suffixes, {path.resolve(): "" for path in skip})
    layout = Layout()
    # lists and class files are read elsewhere
    for suffix in (".txt", ".csv", ".yaml"):
        scanned.left.reasons.pop(suffix, None)
    if scanned.left.count:
        layout.remarks.append(scanned.left.describe(root))
    names = {path: PurePosixPath(plain(path.relative_to(root).as_posix())) for path in scanned.files}
    beside, inside = _by_name(names, root, masks)
    if not beside and not inside:
        inside = _by_content(names)
        for folder in sorted({names[path].parent.as_posix() for path in inside}):
            layout.doubts.append(f"{folder}/ was taken for masks, because its pictures hold few values")
    images = {path: name for path, name in names.items() if path not in beside and path not in inside}
    images = {path: name for path, name in images.items() if name.suffix.lower() in IMAGE_SUFFIXES}
    found = _match(images, names, beside, inside, layout)
    layout.pairs = [FileEntry(image, found[image]) for image in sorted(found)]
    layout.images = [image for image in sorted(images) if image not in found]
    return layout


def _by_name(
    names: dict[Path, PurePosixPath], root: Path, masks: Path | None
) -> tuple[dict[Path, str], set[Path]]:
    """Masks beside their images (with the relative stem of the image), and files in folders of masks."""
    texts = {path: name.as_posix() for path, name in names.items()}
    stems = {ends_with(text, None) for text in texts.values()}
    lossy = {ends_with(t, None) for p, t in texts.items() if p.suffix.lower() not in MASK_SUFFIXES}
    beside: dict[Path, str] = {}
    inside: set[Path] = set()
    folder = masks.resolve() if masks is not None else None
    for path, text in texts.items():
        if path.suffix.lower() not in MASK_SUFFIXES:
            continue
        ending, stem = beside_ending(text, stems, MASK_ENDINGS), ends_with(text, None) or ""
        if folder is not None:
            if path.resolve().is_relative_to(folder):
                inside.add(path)
        elif in_mask_folder(names[path]):
            inside.add(path)
        elif ending is not None:
            beside[path] = ends_with(text, ending) or stem
        elif stem in lossy:
            beside[path] = stem
    return beside, inside


def _by_content(names: dict[Path, PurePosixPath]) -> set[Path]:
    """Files of folders whose pictures look drawn and have the names of pictures elsewhere."""
    folders: dict[PurePosixPath, list[Path]] = {}
    for path, name in names.items():
        folders.setdefault(name.parent, []).append(path)
    count = Counter(name.stem for name in names.values())
    found: set[Path] = set()
    for files in folders.values():
        twins = [path for path in files if count[names[path].stem] > 1]
        step = max(1, len(twins) // _SAMPLES)
        if twins and all(_looks_drawn(path) for path in twins[::step][:_SAMPLES]):
            found.update(files)
    return found if len(found) < len(names) else set()


def _looks_drawn(path: Path) -> bool:
    if path.suffix.lower() not in MASK_SUFFIXES:
        return False
    try:
        values = load_mask(path, 1, PLAIN).values
    except DataError:
        return False
    flat = values.reshape(-1, values.shape[2]) if values.ndim == 3 else values.reshape(-1, 1)
    return len(np.unique(flat, axis=0)) <= _MASK_VALUES


def _match(
    images: dict[Path, PurePosixPath],
    names: dict[Path, PurePosixPath],
    beside: dict[Path, str],
    inside: set[Path],
    layout: Layout,
) -> dict[Path, Path]:
    """The mask of each image that has one."""
    by_stem: dict[str, list[Path]] = {}
    for path, name in images.items():
        by_stem.setdefault(name.stem, []).append(path)
    relative = {ends_with(name.as_posix(), None): path for path, name in images.items()}
    candidates: dict[Path, list[Path]] = {}
    alone: list[Path] = []
    for mask in sorted({*beside, *inside}):
        image = relative.get(beside[mask]) if mask in beside else _image_of(names[mask], by_stem, images)
        if image is None:
            alone.append(mask)
        else:
            candidates.setdefault(image, []).append(mask)
    if alone:
        layout.remarks.append(
            f"{len(alone)} mask(s) without an image of their name, as {names[alone[0]]}: left out"
        )
    ambiguous = {image: masks for image, masks in candidates.items() if len(masks) > 1}
    if ambiguous:
        image, masks = next(iter(ambiguous.items()))
        best, *others = sorted(masks, key=lambda mask: _preference(names[mask]))
        layout.doubts.append(
            f"{len(ambiguous)} image(s) have several masks, as {names[image]}: {names[best]} was taken, not "
            f"{', '.join(str(names[other]) for other in others)}; --masks FOLDER chooses"
        )
    return {
        image: min(masks, key=lambda mask: _preference(names[mask])) for image, masks in candidates.items()
    }


def _image_of(
    mask: PurePosixPath, by_stem: dict[str, list[Path]], images: dict[Path, PurePosixPath]
) -> Path | None:
    """The image of a mask's name whose folders are most like the mask's."""
    stems = [mask.stem, mask.stem.removesuffix(CITYSCAPES_MASK) + CITYSCAPES_IMAGE]
    stems += [stem for end in MASK_ENDINGS if (stem := ends_with(mask.name, end))]
    for stem in stems:
        folders = set(mask.parts[:-1])
        ranked = sorted(by_stem.get(stem, []), key=lambda path: -len(folders & set(images[path].parts[:-1])))
        if ranked:
            shared = [len(folders & set(images[path].parts[:-1])) for path in ranked[:2]]
            return ranked[0] if len(shared) == 1 or shared[0] > shared[1] else None
    return None


def _preference(mask: PurePosixPath) -> tuple[bool, int, str]:
    """Classes before instances, then folders in the order in which lists look for them."""
    text = mask.as_posix().lower()
    order = [MASK_FOLDERS.index(word) for word in mask.parts if word in MASK_FOLDERS]
    return any(word in text for word in _NOT_CLASSES), min(order, default=len(MASK_FOLDERS)), text
