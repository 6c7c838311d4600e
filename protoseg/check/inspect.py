"""The doctor: looks at the data before training and says what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from protoseg.check.findings import Level, Report
from protoseg.check.settings import check_crop, check_weights, describe_length
from protoseg.check.tally import Tally, check_labels, check_orientation, check_values, read_on
from protoseg.config.data import DataConfig
from protoseg.config.sections import Config
from protoseg.data.classes import read_classes
from protoseg.data.lines import Entry
from protoseg.data.lists import SPLITS, EntryList, Split, data_root, scan_entries
from protoseg.data.long_list import FolderEntries, ListedEntries, MissingEntryError
from protoseg.data.masks import mask_reader
from protoseg.data.names import Places
from protoseg.data.pictures import reading
from protoseg.data.ranges import with_value_range
from protoseg.data.shards.entries import ShardEntries
from protoseg.data.sources import FileSource, Source, open_source
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

QUICK_IMAGES = 3
QUICK_MASKS = 8


def inspect(config: Config, *, quick: bool, processes: int = 1, progress: bool = False) -> Report:
    """Check lists, images, masks and settings against each other.

    Args:
        config: The run's configuration.
        quick: Only what a training checks at its start: lists, file existence, overlap by path, a
            few images and masks, image size against crop. Otherwise every file is decoded.
        processes: Training processes that the effective batch is computed for.
        progress: Show a progress bar on stderr.

    Returns:
        Findings and facts; nothing is raised for bad data.
    """
    report = Report()
    try:
        classes = read_classes(config.data)
        data, sources, lists = _open(config.data, classes, report)
    except DataError as error:
        report.add("settings", str(error))
        return report
    report.lists = lists
    report.facts["splits"] = _describe(sources, lists)
    _overlap(report, _by_path(lists), quick=quick)
    tallies = {
        split: _look(data, report, split, source, len(classes), quick=quick, progress=progress)
        for split, source in sources.items()
    }
    sizes: Counter[tuple[int, int]] = sum((tally.sizes for tally in tallies.values()), Counter())
    check_labels(data, classes, tallies, report, quick=quick)
    check_orientation(tallies, report)
    check_values(config.data, data, tallies, sizes.total(), report)
    check_crop(config.data.resize, config.views.crop, sizes, report)
    check_weights(config.data, config.model, config.train.start_from, report)
    if not quick:
        report.facts["image_sizes"] = {f"{w}x{h}": n for (h, w), n in sizes.most_common()}
        _compare_contents(report, tallies)
        _describe_labels(report, classes, config.data.ignore_index, tallies)
    labeled, unlabeled = (len(sources[split]) if split in sources else 0 for split in SPLITS[:2])
    both = config.method.unlabeled
    from protoseg.check.training import check_training  # its imports take seconds

    segmenter = check_training(config, classes, (labeled, unlabeled), processes, report, quick=quick)
    report.facts["training"] = describe_length(config.train, both, labeled, unlabeled, processes)
    if not quick:
        from protoseg.check.memory import estimate_memory

        report.facts["memory"] = (
            estimate_memory(
                config, segmenter, *(tallies[split].sizes if split in tallies else {} for split in SPLITS[:2])
            )
            if segmenter is not None
            else {"not estimated": "the network cannot be built"}
        )
    return report


def open_sources(data: DataConfig, classes: list[ClassInfo]) -> dict[Split, Source]:
    """The readable part of every split, for pictures."""
    return _open(data, classes, Report())[1]


def _open(
    data: DataConfig, classes: list[ClassInfo], report: Report
) -> tuple[DataConfig, dict[Split, Source], dict[Split, EntryList]]:
    if data.kind == "synthetic":
        return data, {split: open_source(data, split, classes) for split in SPLITS}, {}
    data_root(data)
    reader = mask_reader(data, classes)
    lists: dict[Split, EntryList] = {}
    for split in SPLITS:
        try:
            found, problems = scan_entries(data, split)
        except DataError as error:
            report.add("missing", str(error))
            continue
        for text in problems:
            report.add("missing", text)
        for text in found.warnings:
            report.add("list", f"data.{split}: {text}", "warning")
        lists[split] = found
    used = with_value_range(data, *(lists[split].entries if split in lists else () for split in SPLITS[:2]))
    sources: dict[Split, Source] = {
        split: FileSource(found.entries, data.in_channels, reader, found.sha256, reading(used))
        for split, found in lists.items()
    }
    return used, sources, lists


def _describe(sources: dict[Split, Source], lists: dict[Split, EntryList]) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for split, source in sources.items():
        found = lists.get(split)
        facts[split] = {
            "images": len(source),
            "family": found.family if found else "embedded scenes",
            "sha256": found.sha256 if found and len(source) else None,
            "known_name": found.known_name if found else None,
        }
    return facts


def _by_path(lists: dict[Split, EntryList]) -> dict[Split, dict[str, list[str]]]:
    """Images as listed, by the file behind them; of many only those whose names are in other splits."""
    places = Places()
    tables: dict[Split, dict[str, list[str]]] = {}
    plain = {split: found.entries for split, found in lists.items() if isinstance(found.entries, tuple)}
    names = {entry.image.name for entries in plain.values() for entry in entries}
    for split, found in lists.items():
        many = found.entries
        entries: Iterable[Entry] = many
        if isinstance(many, ListedEntries | FolderEntries):
            some = many.names().find(names)
            entries = (many[i] for indices in some.values() for i in indices)
        table = tables[split] = {}
        # what is labelled or for validation in shards is left out of the unlabelled images there
        if isinstance(many, ShardEntries) and split == "unlabeled":
            continue
        for entry in entries:
            table.setdefault(str(places.resolve(entry.image)), []).append(str(entry.image))
    return tables


def _overlap(report: Report, tables: dict[Split, dict[str, list[str]]], *, quick: bool) -> None:
    """Note images that two splits share, and in the full check those that one split repeats."""
    pairs: tuple[tuple[Split, Split], ...] = (
        ("labeled", "val"), ("unlabeled", "val"), ("labeled", "unlabeled"),
    )  # fmt: skip
    for one, two in pairs:
        first, second = tables.get(one, {}), tables.get(two, {})
        shared = [key for key in first if key in second]
        # a training may reuse images on purpose (to overfit a few), so it is only warned
        level: Any = "error" if (one, two) == ("labeled", "val") and not quick else "warning"
        for key in shared:
            here, there = first[key][0], second[key][0]
            also = "" if here == there else f", there as {there}"
            report.add("overlap", f"{one} and {two}: {here}{also}", level)


def _look(
    data: DataConfig, report: Report, split: Split, source: Source, num_classes: int, *,
    quick: bool, progress: bool,
) -> Tally:  # fmt: skip
    tally = Tally()
    indices: Iterable[int] = _quick_indices(len(source), split) if quick else range(len(source))
    if progress and not quick:
        indices = tqdm(indices, desc=f"{split} images", unit="image", leave=False)
    level: Level = "warning" if data.on_error == "skip" and split != "val" else "error"
    for index in indices:
        _look_at(report, source, index, tally, data, level=level, hashed=not quick)
    if quick and split != "unlabeled":
        read_on(source, tally, num_classes, 2 if split == "labeled" else 1, data.ignore_index)
    return tally


def _quick_indices(length: int, split: Split) -> list[int]:
    wanted = QUICK_MASKS if split == "labeled" else QUICK_IMAGES
    step = max(1, length // wanted)
    return list(range(0, length, step))[:wanted]


def _look_at(
    report: Report, source: Source, index: int, tally: Tally, data: DataConfig, *,
    level: Level, hashed: bool,
) -> None:  # fmt: skip
    image = None
    try:
        if hashed:
            tally.digests.setdefault(source.digest(index), []).append(source.name(index))
        image = source.image(index)
        tally.sizes[image.shape[0], image.shape[1]] += 1
        tally.add_values(source, index)
    except MissingEntryError as error:
        report.add("missing", str(error))
        return
    except DataError as error:
        report.add("unreadable-image", str(error), level)
    try:
        found = source.labels(index)
    except DataError as error:
        report.add("unreadable-mask", str(error), level)
        return
    if found is None:
        return
    if found.complaint:
        report.add("mask-values", found.complaint)
    if image is not None and found.ids.shape != image.shape[:2]:
        report.add("size-mismatch", _size_text(source.name(index), image.shape, found.ids.shape))
    if not found.unknown and bool((found.ids == data.ignore_index).all()):
        report.add("all-ignored", source.name(index), "warning")
    tally.add_labels(found, data.ignore_index)
    tally.add_orientation(source, index, data)


def _size_text(name: str, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    text = f"{name} is {image[1]}x{image[0]}, its mask {mask[1]}x{mask[0]} (width x height)"
    if mask == image[1::-1]:
        text += "; the image is turned by its EXIF tag or the mask is transposed"
    return text


def _compare_contents(report: Report, tallies: dict[Split, Tally]) -> None:
    """Note images of equal bytes, in two splits or in one."""
    _overlap(report, {split: tally.digests for split, tally in tallies.items()}, quick=False)
    shared = report.problems.get("overlap")
    if shared is not None:
        # the same pair of files can be found by path and by content
        shared.examples = list(dict.fromkeys(shared.examples))
    for split, tally in tallies.items():
        for names in tally.digests.values():
            if len(names) > 1:
                report.add("duplicate", f"{split}: {' = '.join(names[:4])}", "warning")


def _describe_labels(
    report: Report, classes: list[ClassInfo], ignore_index: int, tallies: dict[Split, Tally]
) -> None:
    """Note the share of each class and of ignored pixels, and classes that no label shows."""
    shares: dict[str, dict[str, float | None]] = {item.name: {} for item in classes}
    report.facts["class_shares"] = shares
    for split in ("labeled", "val"):
        tally = tallies.get(split, Tally())
        valid = int(tally.pixels.sum() - tally.pixels[ignore_index])
        for index, item in enumerate(classes):
            none = 0.0 if tally.masks else None
            shares[item.name][split] = float(tally.pixels[index] / valid) if valid else none
        if tally.pixels.any():
            ignored = float(tally.pixels[ignore_index] / tally.pixels.sum())
            report.facts.setdefault("ignored_share", {})[split] = ignored
    for index, item in enumerate(classes):
        if shares[item.name]["labeled"] == 0:
            report.add("empty-class", f"{item.name} (id {index})", "warning")
