"""Which images of a set of shards are labelled, unlabelled and for validation.

``data.root`` is a folder or URL of shards, or names them itself (``set/train-{000..099}.tar``). A role is a
pattern of shards (all their images), or a list of keys, one a line. Where the labelled and the unlabelled
role name the same shard, images with a mask are labelled and the others unlabelled. What is labelled or for
validation is never unlabelled as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoseg.config.data import DataConfig, FolderPair
from protoseg.data.shards.entries import ShardEntries
from protoseg.data.shards.index import Rules, ShardSet, open_shards
from protoseg.data.shards.root import SHARD_SUFFIXES, Root, names_shards
from protoseg.data.storage import Blob, expand_text, find_blobs, is_url
from protoseg.errors import DataError

_SHOWN = 20


@dataclass
class Chosen:
    """Images of a role."""

    entries: ShardEntries
    family: str
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def choose_images(
    config: DataConfig, split: str, root: Root, read_list: Callable[[str], tuple[str, list[str]]]
) -> Chosen:
    """The images of a role.

    Args:
        config: Data settings.
        split: ``labeled``, ``unlabeled`` or ``val``.
        root: Where shards are.
        read_list: Reads the list of a setting: its name, and its lines.

    Raises:
        DataError: If a shard or list cannot be read, or names nothing.
    """
    source = getattr(config, split)
    if isinstance(source, FolderPair):
        raise DataError(
            f"data.{split} is a pair of folders, data.root={config.root} holds shards: give a pattern of "
            "shards or a list of keys"
        )
    if split == "unlabeled":
        return _unlabeled(config, source, root, read_list)
    blobs, listed = _blobs(config, split, source, root)
    shards = open_shards(blobs, _rules(config))
    chosen = _take(shards, split, source, listed, read_list, masks=True)
    entries = chosen.entries
    masked = shards.table.with_mask()[entries.which]
    if not listed:
        shared = set() if split == "val" else _unlabeled_places(config, root)
        firsts = shards.firsts[1:]
        mixed = np.array([place in shared for place in shards.shards], bool)[
            np.searchsorted(firsts, entries.which, "right")
        ]
        kept = masked | ~mixed
        entries = chosen.entries = ShardEntries(shards, entries.which[kept], True)
        masked = masked[kept]
    without = np.flatnonzero(~masked)
    for at in without[:_SHOWN].tolist():
        chosen.problems.append(
            f"data.{split}={source}: {entries[at].image} has no mask in its shard; name the keys of those "
            "that have one in a list, or name the shard in data.unlabeled as well"
        )
    if len(without) > _SHOWN:
        chosen.problems.append(f"data.{split}={source}: {len(without) - _SHOWN} more images have no mask")
    chosen.entries = ShardEntries(shards, entries.which[masked], True)
    if not len(chosen.entries) and not chosen.problems:
        raise DataError(f"data.{split}={source} names no image with a mask")
    return chosen


def _unlabeled(
    config: DataConfig, source: str, root: Root, read_list: Callable[[str], tuple[str, list[str]]]
) -> Chosen:
    blobs, listed = _blobs(config, "unlabeled", source, root)
    shards = open_shards(blobs, _rules(config))
    chosen = _take(shards, "unlabeled", source, listed, read_list, masks=False)
    number = {place: i for i, place in enumerate(shards.shards)}
    taken = np.zeros(len(shards.table), bool)
    for split in ("labeled", "val"):
        try:
            other = choose_images(config, split, root, read_list)
        except DataError:
            continue  # told where it is used
        for place, rows in other.entries.places():
            if place in number:
                taken[shards.firsts[number[place]] + rows] = True
    which = chosen.entries.which
    used = taken[which]
    if used.any():
        what = f"{int(used.sum())} image(s) that are labelled or for validation"
        chosen.remarks.append(f"{what} are left out, as {chosen.entries[int(np.flatnonzero(used)[0])].image}")
    chosen.entries = ShardEntries(shards, which[~used], False)
    if not len(chosen.entries):
        raise DataError(f"data.unlabeled={source} names only images that are labelled or for validation")
    return chosen


def _unlabeled_places(config: DataConfig, root: Root) -> set[str]:
    """Shards that the unlabelled role names, too."""
    if not names_shards(config.unlabeled):
        return set()
    return {blob.place for blob in _blobs(config, "unlabeled", config.unlabeled, root)[0]}


def _rules(config: DataConfig) -> Rules:
    return Rules(config.image_suffix, config.mask_suffix, config.image_column, config.mask_column)


def _blobs(
    config: DataConfig, split: str, source: str | FolderPair | None, root: Root
) -> tuple[tuple[Blob, ...], bool]:
    """Shards of a role, and whether a list chooses among their images."""
    if isinstance(source, str) and names_shards(source):
        text = expand_text(source)
        place = text if is_url(text) or Path(text).is_absolute() else f"{root.folder}/{text}"
        try:
            return tuple(find_blobs(place)), False
        except DataError as error:
            raise DataError(f"data.{split}: {error}") from error
    found: dict[str, Blob] = {}
    failure = None
    for pattern in root.own:
        try:
            found |= {blob.place: blob for blob in find_blobs(pattern)}
        except DataError as error:
            failure = failure or error
    if not found:
        raise DataError(
            f"data.root={config.root} holds no shard ({', '.join(SHARD_SUFFIXES)}): {failure}; single images "
            "are read from a folder on the disk only"
        )
    return tuple(found.values()), True


def _take(
    shards: ShardSet, split: str, source: str, listed: bool,
    read_list: Callable[[str], tuple[str, list[str]]], *, masks: bool,
) -> Chosen:  # fmt: skip
    """Images of a pattern or list, in its order."""
    kind = "parquet" if shards.shards and shards.shards[0].endswith(".parquet") else "WebDataset"
    everything = np.arange(len(shards.table))
    if not listed:
        chosen = Chosen(ShardEntries(shards, everything, masks), f"{kind}, {len(shards.shards)} shard(s)")
        for reason, (count, first) in sorted(shards.table.left.items()):
            chosen.remarks.append(f"{count} {reason} are left out, as {first}")
        return chosen
    path, lines = read_list(source)
    which, problems = _find_keys(shards, path, lines)
    if not len(which) and not problems:
        raise DataError(f"list {path} names no image; it needs one key a line")
    return Chosen(ShardEntries(shards, which, masks), f"keys of {kind}", problems=problems)


def _find_keys(shards: ShardSet, path: str, lines: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Rows by the lines of a list: keys, with an extension or without, perhaps after their shard's name."""
    names = shards.table.names()
    wanted = [line for line in lines if line and not line.startswith("#")]
    found = names.find({text for line in wanted for text in _spellings(line)})
    which: list[int] = []
    problems: list[str] = []
    missing = 0
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        rows: list[int] = next((found[text] for text in _spellings(line) if text in found), [])
        shard = next((part for part in line.split("/") if part.lower().endswith(SHARD_SUFFIXES)), None)
        if shard is not None:
            rows = [row for row in rows if shards.shard_of(row).rpartition("/")[2] == shard]
        if len(rows) == 1:
            which.append(rows[0])
        elif rows:
            here, there = (shards.shard_of(row) for row in rows[:2])
            name = here.rpartition("/")[2]
            problems.append(
                f"{path}, line {number}: key {line} is in {here} and in {there}; write {name}/{line}"
            )
        else:
            missing += 1
            if missing <= _SHOWN:
                some = f"as {names[0]}" if len(names) else "there is none"
                problems.append(f"{path}, line {number}: no image of the shards has the key {line} ({some})")
    if missing > _SHOWN:
        problems.append(f"{path}: {missing - _SHOWN} more keys are in no shard")
    return np.array(which, np.int64), problems


def _spellings(line: str) -> list[str]:
    """Keys that a line may mean."""
    parts = line.split("/")
    at = next((i for i, part in enumerate(parts) if part.lower().endswith(SHARD_SUFFIXES)), None)
    key = line if at is None else "/".join(parts[at + 1 :])
    folder, slash, name = key.rpartition("/")
    return [key, f"{folder}{slash}{name.partition('.')[0]}"]
