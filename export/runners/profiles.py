"""Optimisation profiles: the shapes an engine is built for, checked before the minutes of a build."""

from __future__ import annotations

import logging
import re

from protoseg.errors import ExportError
from protoseg.manifest import Manifest
from protoseg.records import Record

logger = logging.getLogger(__name__)
WIDE_AREA_RATIO = 16
Shape = tuple[int, int, int]


class Profile(Record):
    """Shapes (batch, height, width) that one profile of an engine takes."""

    name: str
    """Name, for reports."""
    min: Shape
    """Smallest."""
    opt: Shape
    """What kernels are chosen for."""
    max: Shape
    """Largest."""

    def contains(self, shape: Shape) -> bool:
        """Whether the engine runs this shape in this profile."""
        return all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))

    @property
    def fixed(self) -> bool:
        """Whether only one shape fits."""
        return self.min == self.max

    def __str__(self) -> str:
        parts = ("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))
        return f"{self.name}:{':'.join(parts)}"


def parse_profile(text: str) -> Profile:
    """``NAME:MIN:OPT:MAX`` or ``NAME:SHAPE``, each shape ``BxHxW``.

    Raises:
        ExportError: If it has another form.
    """
    name, *parts = text.split(":")
    shapes = [re.fullmatch(r"(\d+)x(\d+)x(\d+)", part) for part in parts]
    if not name or len(parts) not in (1, 3) or not all(shapes):
        raise ExportError(
            f"--profile {text!r}: expected NAME:MIN:OPT:MAX (or NAME:SHAPE) with shapes BxHxW, as "
            "default:1x256x256:1x512x512:8x1024x1024"
        )
    values = [tuple(map(int, match.groups())) for match in shapes if match]
    low, best, high = values * 3 if len(values) == 1 else values
    return Profile(name=name, min=low, opt=best, max=high)


def default_profile(manifest: Manifest) -> Profile:
    """From one tile to four images of twice the training crop, tuned for one crop."""
    multiple = manifest.input.stride_multiple
    height, width = manifest.input.crop
    return Profile(
        name="default", min=(1, min(multiple, height), min(multiple, width)), opt=(1, height, width),
        max=(4, 2 * height, 2 * width),
    )  # fmt: skip


def check_profiles(profiles: list[Profile], manifest: Manifest) -> list[Profile]:
    """The profiles to build: those given, else the default one, else none for a graph of fixed shape.

    Raises:
        ExportError: If sizes are not ordered, too small, doubled, or do not fit the graph's fixed shape.
    """
    static = manifest.graph.static_shape
    if static is not None:
        if any(p.min != static or p.max != static for p in profiles):
            shown = "x".join(map(str, static))
            raise ExportError(f"the graph has the fixed shape {shown}; leave --profile out or export anew")
        return []
    profiles = profiles or [default_profile(manifest)]
    names = [p.name for p in profiles]
    if len(set(names)) < len(names):
        raise ExportError(f"--profile names must differ, got {', '.join(names)}")
    for profile in profiles:
        for axis, low, best, high in zip(
            ("batch", "height", "width"), profile.min, profile.opt, profile.max, strict=True
        ):
            if not 1 <= low <= best <= high:
                raise ExportError(
                    f"--profile {profile}: {axis} must be 1 <= min <= opt <= max, got {low}, {best}, {high}"
                )
        area = [shape[0] * shape[1] * shape[2] for shape in (profile.min, profile.max)]
        if area[1] > WIDE_AREA_RATIO * area[0]:
            logger.info(
                "profile %s spans a factor of %d in size: several narrow profiles run faster",
                profile.name, area[1] // area[0],
            )  # fmt: skip
    return profiles
