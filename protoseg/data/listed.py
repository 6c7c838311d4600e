"""Reads the lines of a list: entries, and what was wrong with the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from protoseg.data.columns import Header, read_header
from protoseg.data.lines import Entry, Resolver
from protoseg.errors import DataError

_EXCEL = re.compile(r"sep=.")
"""First line of tables that Excel writes."""


@dataclass
class Listed:
    """What the lines of a list name."""

    entries: list[Entry] = field(default_factory=list)
    families: dict[str, None] = field(default_factory=dict)
    """Forms of the lines, in the order met."""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """Line number and what is wrong with it."""
    remarks: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Line number of each entry."""
    header: Header | None = None
    """Columns, where a header line names them."""


def read_listed(lines: Sequence[str], resolver: Resolver) -> Listed:
    """Entries of all lines; blank ones, comments (``# ...``) and a header name none.

    Args:
        lines: Without blanks around them.
        resolver: What a line is read with.

    Raises:
        DataError: If the header divides the images into parts.
    """
    listed = Listed()
    first = True
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entry, family = resolver.resolve(line, listed.header)
        except DataError as error:
            if line.startswith("#") or _EXCEL.fullmatch(line):
                continue
            try:
                found = read_header(line) if first else None
            except DataError as refused:
                raise DataError(f"line {number}: {refused}") from refused
            if found is None:
                listed.problems.append((number, str(error)))
            elif found.separator != " ":
                listed.header = found
            if found is not None and found.unread:
                listed.remarks.append(f"columns that are not read: {', '.join(found.unread)}")
        else:
            listed.entries.append(entry)
            listed.numbers.append(number)
            listed.families[family] = None
        first = False
    if resolver.respelled:
        name, path = next(iter(resolver.respelled.items()))
        listed.remarks.append(
            f"{len(resolver.respelled)} name(s) have another letter case on the disk, as {name}: {path.name}"
        )
    return listed
