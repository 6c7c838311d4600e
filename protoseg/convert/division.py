"""Chooses validation images: seeded, and never one frame of a group without the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from protoseg.errors import DataError

_COPY = re.compile(r"^(.*?)(?:\.rf\.[0-9A-Za-z]+)$")
_FRAME = re.compile(r"(?i)^(.*?)[_-]?frame[_-]?\d+$")


def group_names(names: Sequence[str], rule: str) -> tuple[list[str], str]:
    """The group of each image, and a warning ("" for none).

    Args:
        names: Images with subfolders.
        rule: ``auto``: augmented copies (``NAME.rf.HASH``) go together, and so do frames of a video
            (``VIDEO_frame_000123``) where there are several videos; ``folder``; ``none``; else a regular
            expression whose first group (or whole match) names the group.

    Raises:
        DataError: If the expression is none, or does not match an image.
    """
    stems = [name.rpartition(".")[0] for name in names]
    if rule == "none":
        return list(names), ""
    if rule == "folder":
        return [name.rpartition("/")[0] for name in names], ""
    if rule != "auto":
        return _by_expression(names, rule), ""
    videos = [match and f"{stem.rpartition('/')[0]}/{match[1]}" for stem in stems
              for match in [_FRAME.match(stem.rpartition("/")[2])]]  # fmt: skip
    several = len({video for video in videos if video is not None}) > 1
    groups = []
    for stem, video in zip(stems, videos, strict=True):
        copy = _COPY.match(stem)
        groups.append(video if video is not None and several else copy[1] if copy is not None else stem)
    if all(videos) and videos and not several:
        return groups, (
            "all images look like frames of one video, so that validation frames have near copies among the "
            "labelled ones: validate on another video (--group REGEX, or a list of your own)"
        )
    return groups, ""


def _by_expression(names: Sequence[str], rule: str) -> list[str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise DataError(
            f"--group {rule!r} is neither auto, folder, none nor a regular expression ({error})"
        ) from error
    groups = []
    for name in names:
        match = pattern.search(name)
        if match is None:
            raise DataError(f"--group {rule!r} does not match {name}")
        groups.append(match[1] if pattern.groups and match[1] is not None else match[0])
    return groups


def choose_val(present: Sequence[frozenset[int]], groups: Sequence[str], count: int, seed: int) -> list[int]:
    """Positions of the validation images, ascending.

    For each class, the rarest first, one group that shows it is kept for the labelled list; validation then
    takes whole groups at random from the rest, until ``count`` images are reached (or nearly, where the last
    group would overshoot by more than it lacks).

    Args:
        present: Class ids shown by each image.
        groups: Group of each image.
        count: Wanted images.
        seed: Same seed, same choice.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = list(members)
    order = [names[i] for i in np.random.Generator(np.random.PCG64(seed)).permutation(len(names))]
    shows = {name: frozenset().union(*(present[i] for i in members[name])) for name in names}
    kept: set[str] = set()
    missing = set().union(*present) if present else set()
    for label in sorted(missing, key=lambda c: (sum(c in shows[name] for name in names), c)):
        if label in missing:
            best = max((n for n in order if label in shows[n]), key=lambda n: len(shows[n] & missing))
            kept.add(best)
            missing -= shows[best]
    chosen: list[int] = []
    for name in order:
        size = len(members[name])
        lacking = count - len(chosen)
        if name not in kept and lacking > 0 and (size - lacking <= lacking or not chosen):
            chosen += members[name]
    return sorted(chosen)
