"""Reads a fully labelled set, divides it and writes labelled, unlabelled and validation lists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from protoseg.config.data import DataConfig, FolderPair
from protoseg.data.classes import read_classes
from protoseg.data.images import write_text
from protoseg.data.lines import Entry
from protoseg.data.lists import SPLITS, EntryList, expand_path, hash_stems, read_entries
from protoseg.data.masks import MaskReader, mask_reader
from protoseg.data.members import Member
from protoseg.data.shards.root import names_shards
from protoseg.data.storage import expand_text
from protoseg.errors import DataError
from protoseg.split.divide import Parts, divide, parse_amount


@dataclass(frozen=True)
class SplitResult:
    """A written split."""

    files: dict[str, Path]
    parts: Parts
    settings: dict[str, Any]
    """The ``data`` keys that read it."""
    coverage: dict[str, dict[str, int]]
    """Images that show a class, by class name, in the whole set and in each part."""
    labeled_hash: str
    warnings: list[str]


def make_split(
    images: str,
    masks: str | None,
    out: Path,
    *,
    labeled: str,
    val: str = "10%",
    seed: int = 0,
    root: str | None = None,
    classes: str | None = None,
    label_map: str | None = None,
    ignore_index: int = 255,
    force: bool = False,
    progress: bool = False,
) -> SplitResult:
    """Read a labelled set, divide it and write its lists.

    Args:
        images: Folder of images, or a list file with masks (then ``masks`` is None).
        masks: Folder of masks with the same stems.
        out: Folder for ``labeled.txt``, ``unlabeled.txt`` and ``val.txt``.
        labeled: Count, fraction or share of labelled images.
        val: The same for validation images.
        seed: Seed of the choice.
        root: ``data.root`` that the lists are relative to; None takes the folder that holds both
            (for a list file: its own folder).
        classes: Class names split by commas, or a file; None numbers the mask values.
        label_map: JSON mapping, or a ``labelmap.txt``, as ``data.label_map``.
        ignore_index: Mask value that is no class.
        force: Replace existing lists.
        progress: Show a progress bar on stderr.

    Raises:
        DataError: If the set cannot be read, the numbers do not fit, or lists exist.
    """
    files: dict[str, Path] = {name: out / f"{name}.txt" for name in SPLITS}
    existing = [str(path) for path in files.values() if path.exists()]
    if existing and not force:
        raise DataError(f"{', '.join(existing)} exist(s); add --force to replace, or choose another -o")
    config, found = _read_set(images, masks, root, classes, label_map, ignore_index)
    reader, names = _reader(config, classes is not None)
    present = _present(found.entries, reader, progress)
    total = len(found.entries)
    parts = divide(
        present, parse_amount(labeled, total, "--labeled"), parse_amount(val, total, "--val"), seed
    )
    base = Path(config.root)
    _write_lists(files, parts, found.entries, base)
    coverage = _coverage(present, parts, names)
    return SplitResult(
        files={name: path for name, path in files.items() if path.exists()},
        parts=parts,
        settings=_settings(config, root, files, parts, classes),
        coverage=coverage,
        labeled_hash=hash_stems([found.entries[i].image for i in parts.labeled]),
        warnings=[*found.warnings, *_remarks(parts, coverage)],
    )


def _read_set(
    images: str, masks: str | None, root: str | None, classes: str | None, label_map: str | None,
    ignore_index: int,
) -> tuple[DataConfig, EntryList]:  # fmt: skip
    if masks is None and names_shards(images):
        config = DataConfig(
            kind="files", root=expand_text(images), labeled=expand_text(images).rpartition("/")[2], val="",
            ignore_index=ignore_index, classes=_classes(classes), label_map=_label_map(label_map),
        )  # fmt: skip
        return config, read_entries(config, "labeled")
    places = [_place(text, root) for text in (images, masks) if text is not None]
    for place, text in zip(places, (images, masks), strict=False):
        if not place.exists():
            raise DataError(f"{text} not found ({place})")
    source: str | FolderPair
    if masks is None:
        if places[0].is_dir():
            raise DataError(f"{images} is a folder: give the folder of masks too, or a list file")
        source, base = str(places[0]), places[0].parent
    else:
        source = FolderPair(images=str(places[0]), masks=str(places[1]))
        base = Path(os.path.commonpath(places))
    if root is not None:
        base = Path(os.path.normpath(expand_path(root).absolute()))
    config = DataConfig(
        kind="files", root=str(base), labeled=source, val=source, ignore_index=ignore_index,
        classes=_classes(classes), label_map=_label_map(label_map),
    )  # fmt: skip
    return config, read_entries(config, "labeled")


def _place(text: str, root: str | None) -> Path:
    """A path from the command line: from the working directory, else below root."""
    path = expand_path(text).absolute()
    below = None if root is None else expand_path(root).absolute() / expand_path(text)
    place = below if below is not None and below.exists() and not path.exists() else path
    return Path(os.path.normpath(place))


def _classes(text: str | None) -> list[str] | str:
    if text is None:
        return ["unused"]
    if "," in text:
        return [name.strip() for name in text.split(",") if name.strip()]
    return text


def _label_map(text: str | None) -> dict[str, int | str] | str | None:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f'--label-map is not valid JSON ({error}); as {{"0": 0, "255": 1}}') from error
    return {str(key): value if isinstance(value, int) else str(value) for key, value in table.items()}


def _reader(config: DataConfig, named: bool) -> tuple[MaskReader, list[str]]:
    if named:
        classes = read_classes(config)
        return mask_reader(config, classes), [item.name for item in classes]
    if config.label_map is not None:
        raise DataError("--label-map needs --classes, the names that it maps to")
    return MaskReader(255, config.ignore_index), [f"value {i}" for i in range(255)]


def _present(entries: Sequence[Entry], reader: MaskReader, progress: bool) -> list[frozenset[int]]:
    todo: Iterable[Entry] = tqdm(entries, desc="masks", unit="mask") if progress else entries
    present, problems = [], []
    for entry in todo:
        assert entry.mask is not None
        try:
            labels = reader.read(entry.mask)
        except DataError as error:
            problems.append(str(error))
            continue
        values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        present.append(frozenset(values.tolist()) - {reader.ignore_index})
    if problems:
        more = f"\n({len(problems)} masks of {len(entries)} have problems)" if problems[1:] else ""
        raise DataError(problems[0] + more)
    if not frozenset().union(*present):
        raise DataError("no mask has a labelled pixel; check --ignore-index and --label-map")
    return present


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _write_lists(files: dict[str, Path], parts: Parts, entries: Sequence[Entry], base: Path) -> None:
    try:
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be made: {error}") from error
    for name, path in files.items():
        lines = []
        for index in getattr(parts, name):
            picture, mask = entries[index].image, entries[index].mask
            if isinstance(picture, Member):
                lines.append(f"{picture.shard.rpartition('/')[2]}/{picture.key}")
                continue
            image = _relative(picture, base)
            if name == "unlabeled" or not isinstance(mask, Path):
                lines.append(image)
                continue
            label = _relative(mask, base)
            lines.append(("\t" if " " in image + label else " ").join([image, label]))
        if lines:
            write_text(path, "".join(f"{line}\n" for line in lines))
        else:
            # an empty list could not be read back
            path.unlink(missing_ok=True)


def _coverage(
    present: Sequence[frozenset[int]], parts: Parts, names: Sequence[str]
) -> dict[str, dict[str, int]]:
    groups: dict[str, Sequence[int]] = {"all": range(len(present)), **vars(parts)}
    return {
        names[label]: {g: sum(label in present[i] for i in indices) for g, indices in groups.items()}
        for label in sorted(frozenset().union(*present))
    }


def _settings(
    config: DataConfig, root: str | None, files: dict[str, Path], parts: Parts, classes: str | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {"root": config.root if root is None else root}
    for name, path in files.items():
        place = _relative(path.absolute(), Path(config.root))
        settings[name] = place if getattr(parts, name) else None
    settings["classes"] = config.classes if classes is not None else ["NAME_OF_VALUE_0", "..."]
    if config.label_map is not None:
        settings["label_map"] = config.label_map
    if config.ignore_index != 255:
        settings["ignore_index"] = config.ignore_index
    return settings


def _remarks(parts: Parts, coverage: dict[str, dict[str, int]]) -> list[str]:
    remarks = []
    if not parts.unlabeled:
        remarks.append(
            "no image is left without a label: name others in data.unlabeled, or train with "
            "method.preset=supervised"
        )
    if not parts.val:
        remarks.append("no validation list was made; a training needs one (--val)")
    absent = [name for name, counts in coverage.items() if parts.val and not counts["val"]]
    if absent:
        remarks.append(f"not in val, so left out of its mean: {', '.join(absent)}")
    if len(coverage) == 1:
        remarks.append(
            "only one class was found; for masks of 0 and 255 give --classes background,object "
            '--label-map \'{"0": 0, "255": 1}\''
        )
    return remarks
