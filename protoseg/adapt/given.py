"""Images that show a class, with masks: which value of a mask means it is found or told, never assumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoseg.checkpoint import CheckpointInfo
from protoseg.config.data import DataConfig, FolderPair
from protoseg.data.classes import parse_color
from protoseg.data.find import list_roots
from protoseg.data.images import read_image, resize_image, resize_mask
from protoseg.data.lines import Entry
from protoseg.data.lists import read_entries, scan_entries
from protoseg.data.masks import MaskReader, mask_reader
from protoseg.data.pictures import Reading, reading
from protoseg.data.sources import FileSource, Labels
from protoseg.errors import DataError
from protoseg.files import sha256_file

OTHER, OF_CLASS, IGNORED, UNKNOWN = 0, 1, 2, 255
"""What a pixel of a mask is: not of the class, of the class, ignored."""


@dataclass(frozen=True)
class Given:
    """An image at the working size and what its mask says of the class."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, C_in)."""
    state: NDArray[np.uint8]
    """(H, W) of ``OTHER``, ``OF_CLASS`` and ``IGNORED``."""

    @property
    def of_class(self) -> NDArray[np.float32]:
        """(H, W) 1 where the class is."""
        found: NDArray[np.float32] = (self.state == OF_CLASS).astype(np.float32)
        return found

    @property
    def valid(self) -> NDArray[np.float32]:
        """(H, W) 0 where the mask is ignored."""
        found: NDArray[np.float32] = (self.state != IGNORED).astype(np.float32)
        return found


@dataclass(frozen=True)
class Meaning:
    """How masks are read."""

    reader: MaskReader
    """Gives class ids, or with ``binary`` the states."""
    text: str
    """What that is, for the user."""
    label: int
    """What the reader calls the class."""
    binary: bool
    """Whether all values but the class's are other pixels."""

    def state(self, entry: Entry) -> NDArray[np.uint8]:
        """(H, W) states of a mask.

        Raises:
            DataError: If it cannot be read.
        """
        assert entry.mask is not None
        if self.binary:
            labels, _ = self.reader.decode(entry.mask, entry.image)
            return np.where(labels == UNKNOWN, OTHER, labels).astype(np.uint8)
        labels = self.reader.read(entry.mask, entry.image)
        state = np.where(labels == self.label, OF_CLASS, OTHER)
        return np.where(labels == self.reader.ignore_index, IGNORED, state).astype(np.uint8)


def find_pairs(data: DataConfig, images: Path, masks: Path | None) -> Sequence[Entry]:
    """Images with their masks: two folders, an image and its mask, or a list of ``image mask`` lines.

    Args:
        data: How folders are paired (``image_suffix``, ``mask_suffix``); its lists are not looked at.
        images: Folder of images, an image, or a list file.
        masks: Folder of masks, or a mask; None for a list.

    Raises:
        DataError: If something is missing.
    """
    for option, path in (("--images", images), ("--masks", masks)):
        if path is not None and not path.exists():
            raise DataError(f"{option} {path} does not exist")
    if masks is None and images.is_dir():
        raise DataError(f"--images {images} is a folder: name the folder of its masks with --masks")
    if masks is not None and images.is_file() and masks.is_file():
        return [Entry(images.absolute(), masks.absolute())]
    if masks is not None and not (images.is_dir() and masks.is_dir()):
        raise DataError(f"--images {images} --masks {masks}: name two folders, or an image and its mask")
    if masks is None:
        return read_entries(listed_data(data, images), "labeled").entries
    pair = FolderPair(images=str(images.absolute()), masks=str(masks.absolute()))
    update = {"kind": "files", "root": str(images.absolute()), "labeled": pair}
    found, problems = scan_entries(data.model_copy(update=update), "labeled")
    if problems:
        raise DataError(
            f"{problems[0].removeprefix('data.labeled: ')} ({len(problems)} such image(s)); leave out of "
            "--images what has no mask, or give a list of `image mask` lines"
        )
    return found.entries


def listed_data(data: DataConfig, path: Path) -> DataConfig:
    """Data settings whose labelled and validation images are those of a list.

    Its lines are relative to its own folder, the working directory, or the folder of the training's data.

    Raises:
        DataError: If it cannot be read below any of them.
    """
    listed = str(path.absolute())
    update = {"kind": "files", "labeled": listed, "val": listed}
    problems: list[DataError] = []
    for root in list_roots(None, path, data):
        found = data.model_copy(update={**update, "root": str(root)})
        try:
            read_entries(found, "labeled")
        except DataError as error:
            problems.append(error)
        else:
            return found
    raise problems[0]


def choose_meaning(info: CheckpointInfo, entries: Sequence[Entry], name: str, value: str | None) -> Meaning:
    """Which value of the masks is the class ``name``.

    Args:
        info: Classes of the network, and how its own masks were read.
        entries: Images and masks.
        name: A class of the network, or a new one.
        value: Grey value (``255``) or colour (``128,0,0``) as the user told it; None to find it out.

    Raises:
        DataError: If the masks leave open what they mean, or hold no pixel of the class.
    """
    how = reading(info.data, info.input)
    if value is not None:
        return _told(info, how, name, value)
    names = [item.name for item in info.classes]
    label = names.index(name) if name in names else len(names)
    if name in names:
        own = mask_reader(info.data, info.classes)
    else:
        own = MaskReader(len(names) + 1, info.ignore_index, how=how)
    found = _values(entries, how)
    rest = found - {"0", str(info.ignore_index)}
    if name in names or (info.data.label_map is None and not info.data.reduce_zero_label):
        decoded = [own.decode(entry.mask, entry.image) for entry in entries if entry.mask is not None]
        if not any(unknown for _, unknown in decoded) and any((ids == label).any() for ids, _ in decoded):
            return Meaning(
                own, f"as the network's own masks are read, {name} is class {label}", label, binary=False
            )
    only = next(iter(rest)) if len(rest) == 1 else None
    if not rest and str(info.ignore_index) in found:
        only = str(info.ignore_index)
    if only is not None and (only in ("1", "255")) and not (name in names and only == "1"):
        return _told(info, how, name, only)
    example = only or next((text for text in (str(label), *sorted(rest)) if text in rest), "255")
    shown = ", ".join(sorted(found, key=lambda text: (len(text), text))[:12])
    raise DataError(
        f"the masks hold the values {shown}: none is surely {name}. Say which with --value, as --value "
        f"{example}"
    )


def _told(info: CheckpointInfo, how: Reading, name: str, value: str) -> Meaning:
    values, colors = {}, {}
    if value.strip().isdecimal():
        values[int(value)] = OF_CLASS
    else:
        colors[parse_color(value, "--value")] = OF_CLASS
    values.setdefault(info.ignore_index, IGNORED)
    ignored = "" if values[info.ignore_index] == OF_CLASS else f", {info.ignore_index} is ignored"
    reader = MaskReader(3, UNKNOWN, values, colors, IGNORED, how)
    return Meaning(reader, f"{value} is {name}{ignored}, all other values are not", OF_CLASS, binary=True)


def _values(entries: Sequence[Entry], how: Reading) -> set[str]:
    """Values (``7``) and colours (``128,0,0``) that the masks hold."""
    reader = MaskReader(255, 255, how=how)
    found: set[str] = set()
    for entry in entries:
        assert entry.mask is not None
        labels, unknown = reader.decode(entry.mask, entry.image)
        values = {str(number) for number in np.unique(labels)}
        if unknown and int((labels == 255).sum()) == sum(unknown.values()):
            values.discard("255")  # what has no meaning is called so
        found |= values | set(unknown)
    return found


def read_given(info: CheckpointInfo, entries: Sequence[Entry], meaning: Meaning, name: str) -> list[Given]:
    """All images and masks at the working size.

    Raises:
        DataError: If a file cannot be read, sizes differ, or no mask shows the class.
    """
    how, rule, found = reading(info.data, info.input), info.input.resize, []
    for name_of_file, entry in zip(file_names(entries), entries, strict=True):
        image = read_image(entry.image, info.input.channels, how)
        state = meaning.state(entry)
        if image.shape[:2] != state.shape:
            raise DataError(
                f"{entry.image} is {image.shape[0]}x{image.shape[1]}, its mask {entry.mask} {state.shape[0]}x"
                f"{state.shape[1]} (height x width); they must be equal"
            )
        found.append(Given(name_of_file, resize_image(image, rule), resize_mask(state, rule)))
    if not any((item.state == OF_CLASS).any() for item in found):
        raise DataError(
            f"none of the {len(found)} masks has a pixel of {name} ({meaning.text}); say with --value which "
            "value is"
        )
    return found


class GivenSource(FileSource):
    """Images as the labelled ones of a training, whose masks know one class alone.

    Args:
        entries: Images and masks.
        meaning: How the masks are read.
        label: Id of the class.
        info: The network that has it.
    """

    def __init__(self, entries: Sequence[Entry], meaning: Meaning, label: int, info: CheckpointInfo) -> None:
        super().__init__(entries, info.input.channels, None, "", reading(info.data, info.input))
        self.meaning, self.names = meaning, file_names(entries)
        # not the class, and not known to be another: it speaks against a prototype, and for none
        free = (value for value in range(255, len(info.classes) - 1, -1) if value != info.ignore_index)
        self.values = np.full(256, next(free, info.ignore_index), np.uint8)
        self.values[[OF_CLASS, IGNORED]] = label, info.ignore_index

    def name(self, index: int) -> str:
        """Name of the file."""
        return self.names[index]

    def labels(self, index: int) -> Labels:
        """See ``Source``."""
        return Labels(self.values[self.meaning.state(self.entries[index])])


def file_names(entries: Sequence[Entry]) -> list[str]:
    """What to call each image: its file's name; where names repeat, its path below the folder of all."""
    names = [entry.image.name for entry in entries]
    if len(set(names)) == len(names):
        return names
    paths = [Path(str(entry.image)).absolute() for entry in entries]
    top = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(top).as_posix() for path in paths]


def hashes(entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """SHA-256 of each image and of its mask, by the image's name."""
    return {
        name: {
            kind: sha256_file(path)
            for kind, path in (("image", entry.image), ("mask", entry.mask))
            if isinstance(path, Path)
        }
        for name, entry in zip(file_names(entries), entries, strict=True)
    }
