"""What one split's images and masks add up to, and what that says of labels, orientation and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protoseg.check.cures import Seen, add_background, propose, two_values
from protoseg.check.findings import Report
from protoseg.config.data import DataConfig
from protoseg.data.lists import Split
from protoseg.data.masks import follows_image, label_map_entries
from protoseg.data.pictures import file_orientation
from protoseg.data.ranges import Values, image_values
from protoseg.data.sources import FileSource, Labels, Source
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

# the values of a dark image lie in so small a part of the range, or a smaller one
_DARK = 1 / 8


@dataclass
class Tally:
    """What one split's images and masks add up to."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels by label, those of unknown values left out."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Pixels by value without a class."""
    soft: int = 0
    """Masks whose unknown values are soft edges."""
    digests: dict[str, list[str]] = field(default_factory=dict)
    masks: int = 0
    turned: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs of image and mask by their EXIF orientations, where nothing says which one is right."""
    turned_example: dict[tuple[int, int], str] = field(default_factory=dict)
    values: Values | None = None
    """Of images of more than 8 bits."""
    deep: int = 0
    """Images of more than 8 bits."""

    def add_labels(self, found: Labels, ignore_index: int) -> None:
        """Count the pixels of a mask."""
        counts = np.bincount(found.ids.ravel(), minlength=256)
        counts[ignore_index] -= sum(found.unknown.values())
        self.pixels += counts
        self.unknown.update(found.unknown)
        self.soft += "soft edges" in found.complaint
        self.masks += 1

    def add_orientation(self, source: Source, index: int, data: DataConfig) -> None:
        """Note a pair of which only one is turned, unless the sizes tell that this is right."""
        if not isinstance(source, FileSource) or data.exif == "ignore":
            return
        entry = source.entries[index]
        if entry.mask is None:
            return
        image, size = file_orientation(entry.image)
        mask, mask_size = file_orientation(entry.mask)
        told = image >= 5 and size[0] != size[1] and mask == 1
        if image == mask or told or follows_image(image, size, mask_size):
            return
        self.turned[image, mask] += 1
        self.turned_example.setdefault((image, mask), str(entry.image))

    def add_values(self, source: Source, index: int) -> None:
        """Widen the range of values."""
        if not isinstance(source, FileSource):
            return
        try:
            found = image_values(source.entries[index].image, source.channels, source.how)
        except DataError:
            return  # said elsewhere
        if found is not None:
            self.deep += 1
            self.values = found if self.values is None else self.values.joined(found)

    def classes(self, num_classes: int) -> list[int]:
        """Classes that have a pixel."""
        return [int(i) for i in np.flatnonzero(self.pixels[:num_classes])]


def read_on(source: Source, tally: Tally, num_classes: int, wanted: int, ignore_index: int) -> None:
    """Read masks until ``wanted`` classes were seen, so that a lack of them is told from an unlucky start."""
    for index in range(len(source)):
        if tally.unknown or len(tally.classes(num_classes)) >= wanted:
            return
        try:
            found = source.labels(index)
        except DataError:
            continue
        if found is not None:
            tally.add_labels(found, ignore_index)


def check_labels(
    data: DataConfig, classes: Sequence[ClassInfo], tallies: Mapping[Split, Tally], report: Report, *,
    quick: bool
) -> None:  # fmt: skip
    """Unknown values, classes and splits that have no pixels; cures only when all masks were read."""
    names = [item.name for item in classes]
    labeled, val = tallies.get("labeled", Tally()), tallies.get("val", Tally())
    for split, tally in (("labeled", labeled), ("val", val)):
        if tally.masks and not tally.unknown and not tally.classes(len(names)):
            report.add(
                "no-labels",
                f"data.{split}: no mask has a pixel of a class, all are ignored; see data.label_map and "
                "data.ignore_index",
            )
    unknown = labeled.unknown + val.unknown
    known = frozenset(labeled.classes(len(names)) + val.classes(len(names)))
    if "mask-values" in report.problems and not (labeled.soft or val.soft):
        seen = Seen(known, dict(unknown.most_common()), label_map_entries(data, names))
        closer = "python -m protoseg.check reads all masks and proposes settings"
        report.cure("mask-values", closer if quick else propose(data, names, seen))
    if data.kind != "files" or not labeled.masks:
        return
    only = labeled.classes(len(names))
    label_map = label_map_entries(data, names)
    white = int(labeled.pixels[255]) if data.ignore_index == 255 else 0
    if len(names) == 1:
        values = {*unknown, *map(str, known)} | ({"255"} if white and not label_map else set())
        report.add("one-class", f"data.classes names {names[0]} alone, and every pixel would be {names[0]}")
        if not quick:
            report.cure("one-class", add_background(names[0], data, values))
    elif (
        only == [0]
        and data.label_map is None
        and labeled.pixels[255]
        and data.ignore_index == 255
        and not unknown
    ):
        report.add(
            "two-value",
            "every labelled mask holds only 0 and 255, and 255 is ignored, so one class would be learned; "
            "for "
            f"two-value masks: {two_values(names)}",
        )
    elif len(only) == 1 and label_map and "255" not in label_map and white and not unknown:
        report.add("two-value", "255 is not in data.label_map and ignored, so one class would be learned")
        if not quick:
            seen = Seen(known, {"255": white}, label_map)
            report.cure("two-value", propose(data, names, seen))
    elif len(only) == 1 and not unknown:
        report.add(
            "one-class",
            f"every labelled pixel is {names[only[0]]}, and nothing else would be learned; see whether "
            "data.label_map "
            "and data.ignore_index say what the masks mean, or add masks that show another class",
        )


def check_orientation(tallies: Mapping[Split, Tally], report: Report) -> None:
    """Images and masks that are turned otherwise, where their sizes do not tell which is right."""
    for split, tally in tallies.items():
        for (image, mask), count in tally.turned.items():
            tag = f"orientation {mask}" if mask != 1 else "no such tag"
            report.add(
                "orientation",
                f"{split}: {count} image(s) with EXIF orientation {image} whose mask has {tag}, as "
                f"{tally.turned_example[image, mask]}",
                "warning",
            )
    if "orientation" in report.problems:
        report.cure(
            "orientation",
            "each is turned by its own tag. Look at the contact sheet: where the masks were drawn on the "
            "pixels as "
            "stored, set data.exif=ignore",
        )


def check_values(
    asked: DataConfig, used: DataConfig, tallies: Mapping[Split, Tally], images: int, report: Report
) -> None:
    """The range of values against what images of more than 8 bits hold."""
    found = None
    for tally in tallies.values():
        if tally.values is not None:
            found = tally.values if found is None else found.joined(tally.values)
    if found is None:
        return
    if used.value_range is None:
        text = (
            f"images of more than 8 bits hold {found.low:g} to {found.high:g}; none was among those sampled"
        )
        report.add("value-range", text, "warning")
        report.cure("value-range", _setting(found))
        return
    low, high = used.value_range
    deep = sum(tally.deep for tally in tallies.values())
    held = f"{found.low:g} to {found.high:g}"
    sees = [round(255 * min(1.0, max(0.0, (end - low) / (high - low)))) for end in (found.low, found.high)]
    origin = "found in the data" if asked.value_range is None else "data.value_range"
    report.facts["values"] = (
        f"{deep} image(s) of more than 8 bits hold {held}; {low:g} to {high:g} become 0 to 255 ({origin}), "
        "so the "
        f"network sees {sees[0]} to {sees[1]}"
    )
    best = _setting(found)
    if asked.value_range is None and (low, high) not in ((0, 65535), (0, 1)):
        report.add(
            "value-range",
            f"images of more than 8 bits hold {held}, which is not the full range of their type: {low:g} to "
            f"{high:g} become 0 to 255, as found in the data",
            "warning",
        )
        report.cure(
            "value-range", f"set {_setting_of(used.value_range)} to settle it, or the range of the sensor"
        )
    elif found.low < low or found.high > high:
        text = f"images hold {held}: what is outside of {low:g} to {high:g} is cut off"
        report.add("value-range", text, "warning")
        report.cure("value-range", best)
    elif sees[1] - sees[0] <= 255 * _DARK:
        text = f"images hold {held}: of 0 to 255 the network sees {sees[0]} to {sees[1]}"
        report.add("value-range", text, "warning")
        report.cure("value-range", best)
    if deep < images:
        text = f"{deep} of {images} images have more than 8 bits; the others are taken as they are"
        report.facts["values"] += f"; {text}"


def _setting(values: Values) -> str:
    return f"set {_setting_of(values.range())}"


def _setting_of(found: tuple[float, float]) -> str:
    return f"data.value_range=[{found[0]:.9g},{found[1]:.9g}]"
