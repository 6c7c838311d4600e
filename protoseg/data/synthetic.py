"""The embedded data set: photo-like scenes of solids, drawn; each class has several appearances.

A class is a kind of solid (ball, box, can, cone, ...) that comes in up to four *modes*, combinations of a
texture and colours. Neighbours on the colour circle belong to different classes, and light, its colour,
shadows, distance and ground differ from scene to scene. The first twelve scenes show every mode, but are
of one session: hardly darker, brighter, warmer or cooler than each other. All others, those of validation
too, are of any hour. So twelve labels teach what there is, and images without labels how it looks at
other times. The same seed gives the same bytes on any machine (``protoseg/data/scenes``).

``python -m protoseg.data.synthetic FOLDER`` writes the set as files, to try the settings for own data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.config.data import SyntheticConfig
from protoseg.data.images import save_image, save_mask, write_text
from protoseg.data.lists import SPLITS, Split
from protoseg.data.palette import default_palette
from protoseg.data.scenes.patterns import Dice
from protoseg.data.scenes.scene import Scene
from protoseg.data.scenes.solids import SOLIDS
from protoseg.errors import DataError, guarded
from protoseg.manifest import ClassInfo

IGNORE = 255
# the first scenes, which are those with labels by default, are of one session: their light differs little
_SESSION, _SESSION_VARIETY = 12, 0.15


def synthetic_classes(config: SyntheticConfig) -> list[ClassInfo]:
    """The classes of the embedded set, named after their solids; id 0 is the background."""
    names = ["background", *SOLIDS][: config.num_classes]
    colors = default_palette(names)
    return [ClassInfo(name=name, color=color) for name, color in zip(names, colors, strict=True)]


class SyntheticScenes:
    """Scenes of one split, drawn on demand."""

    def __init__(self, config: SyntheticConfig, split: Split) -> None:
        """Prepare the split.

        Args:
            config: Size, classes, modes and seed.
            split: ``labeled``, ``unlabeled`` or ``val``. Unlabelled scenes go on where labelled ones end, so
                that ``num_labeled=172, num_unlabeled=0`` labels the images of ``12`` and ``160``.
        """
        self.config = config
        self.split: Split = split
        self._length = int(getattr(config, f"num_{split}"))
        self._last: tuple[int, NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image ``index`` as (H, W, 3) uint8 RGB."""
        return self._drawn(index)[0].copy()

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Class ids of image ``index`` as (H, W) uint8; a thin border round objects is 255."""
        return self._drawn(index)[1].copy()

    def scene(self, index: int) -> Scene:
        """Scene ``index``, not yet drawn."""
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length} in split {self.split}")
        config = self.config
        number = index + (config.num_labeled if self.split == "unlabeled" else 0)
        val = self.split == "val"
        return Scene(
            (config.height, config.width), config.num_classes - 1, config.modes, number,
            Dice([config.seed, int(val), number]), _SESSION_VARIETY if number < _SESSION and not val else 1.0,
        )  # fmt: skip

    def _drawn(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if self._last is None or self._last[0] != index:
            image, labels = self.scene(index).draw()
            self._last = (index, image, _with_border(labels))
        return self._last[1], self._last[2]


def _with_border(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels with 255 on both pixels of every edge between two classes."""
    out = labels.copy()
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    out[1:][down] = IGNORE
    out[:-1][down] = IGNORE
    out[:, 1:][right] = IGNORE
    out[:, :-1][right] = IGNORE
    return out


def write_dataset(config: SyntheticConfig, folder: Path) -> dict[str, Any]:
    """Write the set as files: ``images/``, ``masks/``, three lists and ``classes.txt``.

    Args:
        config: The set.
        folder: Made when missing; existing files of these names are replaced.

    Returns:
        The ``data`` section that reads the folder back.

    Raises:
        DataError: If a file cannot be written.
    """
    folder = Path(folder)
    classes = synthetic_classes(config)
    try:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error}") from error
    for split in SPLITS:
        scenes = SyntheticScenes(config, split)
        lines = []
        for index in range(len(scenes)):
            name = f"{split}_{index:04d}.png"
            save_image(folder / "images" / name, scenes.image(index))
            line = f"images/{name}"
            if split != "unlabeled":
                save_mask(folder / "masks" / name, scenes.mask(index), [item.color for item in classes])
                line += f" masks/{name}"
            lines.append(line)
        write_text(folder / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    write_text(folder / "classes.txt", "".join(f"{item.name}\n" for item in classes))
    return {
        "kind": "files", "root": str(folder), "labeled": "labeled.txt",
        "unlabeled": "unlabeled.txt" if config.num_unlabeled else None,
        "val": "val.txt", "classes": "classes.txt",
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Write the embedded data set as files; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.data.synthetic",
        description="Write the embedded data set as images, masks and lists, to try the settings "
        "for own data.",
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    for name, info in SyntheticConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=info.default, help=f"{info.description} (%(default)s)")
    args = vars(parser.parse_args(argv))
    folder = args.pop("folder")

    def body() -> int:
        section = write_dataset(SyntheticConfig(**args), folder)
        sys.stdout.write("data:\n" + "".join(f"  {k}: {v}\n" for k, v in section.items() if v is not None))
        return 0

    return guarded(body, ValueError)


if __name__ == "__main__":
    sys.exit(main())
