"""YAML as people write it: names that YAML 1.1 takes for something else, and keys given twice.

YAML 1.1 reads ``no`` and ``on`` as truth values, ``0123`` as an octal number, ``2024-01-01`` as a date and
``255:`` as a number. Class names and mask values stay what was written where that is certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from protoseg.errors import ConfigError

_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_INT = "tag:yaml.org,2002:int"
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
Spots = dict[tuple[str, ...], tuple[int, str]]
"""Line and text of each value by its key, for values that YAML does not take for text."""


def parse_yaml(text: str, source: str) -> Any:
    """As ``yaml.safe_load``, but ``data.classes`` and ``data.label_map`` keep names and values as written.

    Raises:
        ConfigError: If a key is given twice, or a name or value can be meant in two ways; names the line.
        yaml.YAMLError: If it is not YAML.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return None
    _refuse_repeats(node, source, ())
    data = _value(node, "data")
    if data is not None:
        _keep_classes(data)
        _keep_label_map(_value(data, "label_map"), source)
    return yaml.SafeLoader("").construct_document(node)


def find_spots(text: str) -> Spots:
    """Where values stand that are no text; nothing for what is not YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return {}
    return dict(_walk(node, ())) if node is not None else {}


def _walk(node: yaml.Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[int, str]]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _walk(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, str(index)))
    elif isinstance(node, yaml.ScalarNode) and node.tag != _TEXT:
        yield path, (_line(node), node.value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value(node: yaml.Node, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    found = [value for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == name]
    return found[0] if found else None


def _refuse_repeats(node: yaml.Node, source: str, path: tuple[str, ...]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeats(value, source, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in lines:
                cure = (
                    'put colours in quotes, as "128,64,128": road'
                    if path[-1:] == ("label_map",)
                    else f"the first is on line {lines[key.value]}; join them"
                )
                name = ".".join([*path, key.value])
                raise ConfigError(f"{source}, line {_line(key)}: {name} is given twice; {cure}")
            lines[key.value] = _line(key)
            _refuse_repeats(value, source, (*path, key.value))


def _keep_classes(data: yaml.Node) -> None:
    """Names as they are written; ``{0: sky, 1: road}`` is the list that it counts."""
    node = _value(data, "classes")
    if isinstance(node, yaml.MappingNode) and [key.value for key, _ in node.value] == [
        str(number) for number in range(len(node.value))
    ]:
        names = yaml.SequenceNode("tag:yaml.org,2002:seq", [value for _, value in node.value])
        data.value = [(key, names if value is node else value) for key, value in data.value]
        node = names
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(item, yaml.ScalarNode) and item.tag != _NULL:
                item.tag = _TEXT


def _keep_label_map(node: yaml.Node | None, source: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            continue
        where = f"{source}, line {_line(key)}: data.label_map"
        if key.tag != _TEXT and not _WHOLE.fullmatch(key.value):
            raise ConfigError(
                f"{where} has the key {key.value}, which YAML does not read as written; put it in quotes: "
                f'"{key.value}"'
            )
        key.tag = _TEXT
        if value.tag == _NULL:
            raise ConfigError(
                f"{where} gives {key.value!r} no class; write a class, an id or ignore, and put colours in "
                'quotes, as "128,64,128": road'
            )
        if value.tag == _INT and not _WHOLE.fullmatch(value.value):
            raise ConfigError(
                f"{where} maps {key.value!r} to {value.value}, which YAML does not read as written; put it "
                f'in quotes: "{value.value}"'
            )
        if value.tag != _INT:
            value.tag = _TEXT
