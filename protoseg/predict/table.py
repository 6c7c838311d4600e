"""Which result belongs to which image: names of results, and ``predictions.csv``."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from protoseg.data.find import NOVELTY, RESULT_FOLDERS, FoundImage
from protoseg.data.images import write_text
from protoseg.data.names import plain
from protoseg.errors import DataError

TABLE_NAME = "predictions.csv"
NOVEL_SHARE = "novel_share"
COLUMNS = ("input", "name", *RESULT_FOLDERS, "head", "run", "step", NOVELTY, NOVEL_SHARE)
Row = dict[str, str]


def part_file(part: str, name: str) -> str:
    """A result's path below the folder of results."""
    return f"{part}/{name}.{'jpg' if part == 'overlays' else 'png'}"


class ResultTable:
    """Rows of ``predictions.csv`` by the absolute path of the image.

    An image keeps its name over calls; a name that another image has, or a file that no row knows, is never
    taken. A row whose ``masks`` and other folders are empty is reserved: its call has not come to it.

    Args:
        out: Folder of results.

    Raises:
        DataError: If the table of an earlier call cannot be read.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / TABLE_NAME
        self.changed: dict[str, Row] = {}
        self._keys: dict[str, str] = {}  # of the reserved names
        self.rows = self._read()

    def _read(self) -> dict[str, Row]:
        if not self.path.exists():
            return {}
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path} cannot be read: {error}; choose another -o") from error
        if any(not row.get("input") or not row.get("name") for row in rows):
            raise DataError(
                f"{self.path} is not the table that predict writes ({', '.join(COLUMNS)}); choose another -o"
            )
        return {row["input"]: {key: row.get(key) or "" for key in COLUMNS} for row in rows}

    def reserve(self, images: Sequence[FoundImage]) -> list[str]:
        """A name for each image, and the table with them on the disk.

        The name is the path below the folder that was searched, without its suffix; where that is taken,
        ``NAME_2`` and so on. Case and Unicode form are ignored, because some file systems do.

        Raises:
            DataError: If the table cannot be written.
        """
        return self._reserve({_key(item.path): item.place.with_suffix("").as_posix() for item in images})

    def reserve_one(self, source: str, wanted: str) -> str:
        """A name for one image, as ``reserve`` gives it.

        Args:
            source: Its path, or what tells it from others where it is no file: a text as ``<array 1f0c>``.
            wanted: The name if nothing else has it.

        Raises:
            DataError: If the table cannot be written.
        """
        return self._reserve({source if source.startswith("<") else _key(Path(source)): wanted})[0]

    def _reserve(self, wanted: Mapping[str, str]) -> list[str]:
        taken = {_fold(row["name"]) for row in self.rows.values()}
        first = {_fold(name) for name in wanted.values()}
        names = []
        for key, plain_name in wanted.items():
            row = self.rows.get(key)
            if row is None:
                name, number = plain_name, 1
                while _fold(name) in taken or (number > 1 and _fold(name) in first) or self._exists(name):
                    name = f"{plain_name}_{(number := number + 1)}"
                taken.add(_fold(name))
                row = dict.fromkeys(COLUMNS, "") | {"input": key, "name": name}
                self.changed[key] = row
            names.append(row["name"])
        self._keys |= dict(zip(names, wanted, strict=True))
        self.write()
        return names

    def _exists(self, name: str) -> bool:
        return any((self.out / part_file(part, name)).exists() for part in (*RESULT_FOLDERS, NOVELTY))

    def done(
        self,
        name: str,
        parts: Sequence[str],
        head: str,
        run: str,
        step: int | str,
        novel_share: float | None = None,
    ) -> None:
        """Note the results that were written under a reserved name.

        Args:
            name: As reserved.
            parts: Folders that have them.
            head: Head that labelled.
            run: Name of the run that trained the network.
            step: Its optimiser step, or the version of its bundle.
            novel_share: Share of novel pixels, where there is a map of novelty.
        """
        key = self._keys[name]
        files = {part: part_file(part, name) if part in parts else "" for part in (*RESULT_FOLDERS, NOVELTY)}
        self.changed[key] = {
            "input": key, "name": name, **files, "head": head, "run": run, "step": str(step),
            NOVEL_SHARE: "" if novel_share is None else f"{novel_share:.4f}",
        }  # fmt: skip

    def write(self) -> None:
        """Write the table, whole or not at all, over what other calls have written since.

        Raises:
            DataError: If it cannot be written.
        """
        self.rows = {**self._read(), **self.changed}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.out} cannot be made: {error}") from error
        write_text(self.path, text.getvalue())


def _key(path: Path) -> str:
    return os.path.normpath(path.absolute())


def _fold(name: str) -> str:
    return plain(name).casefold()
