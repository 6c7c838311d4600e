"""Reads JSON, XML, CSV and YAML that somebody else wrote; what is damaged is named with file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from protoseg.errors import DataError


def read_text(path: Path) -> str:
    """A text in UTF-8 (a byte order mark is harmless) or UTF-16 with its mark.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """A JSON value.

    Raises:
        DataError: If it is damaged, with the line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: damaged JSON ({error.msg}, column {error.colno}); export it again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: JSON is nested too deeply") from error


class _PlainTree(ElementTree.TreeBuilder):
    """Refuses document types, and with them every entity that could grow or read files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError(f"has a DOCTYPE ({name}), which no annotation tool writes; remove it")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; document types and entities are refused.

    Raises:
        DataError: If it is damaged, with the line.
    """
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        parser.feed(path.read_bytes())
        root: ElementTree.Element = parser.close()
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path}, line {error.position[0]}: damaged XML ({error}); export it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return root


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column name, all stripped.

    Raises:
        DataError: If it is damaged or a row has more fields than the header.
    """
    rows = []
    try:
        reader = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
        for row in reader:
            if None in row:
                raise DataError(f"{path}, line {reader.line_num}: more fields than the header names")
            rows.append({key.strip(): (value or "").strip() for key, value in row.items()})
    except csv.Error as error:
        raise DataError(f"{path}: damaged CSV ({error})") from error
    return rows


def read_yaml(path: Path) -> Any:
    """A YAML value.

    Raises:
        DataError: If it is damaged; PyYAML's text has the line.
    """
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: damaged YAML ({error})") from error


@contextmanager
def expected(where: str) -> Iterator[None]:
    """Turn what code meets in a value of another form into an error that names the place.

    Raises:
        DataError: Instead of a missing key, a wrong type or a number that is none.
    """
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from error
    except KeyError as error:
        raise DataError(f"{where}: {error} is missing") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError) as error:
        raise DataError(f"{where}: not of the expected form ({error})") from error
