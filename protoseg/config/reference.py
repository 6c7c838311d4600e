"""Every setting as text, for ``python -m protoseg.train --settings``, and as Markdown, for the documents."""

from __future__ import annotations

import json
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from protoseg.config.method import MethodConfig
from protoseg.config.presets import METHOD_PRESETS, MODEL_PRESETS, preset_values
from protoseg.config.sections import Config
from protoseg.records import Section

BASIC = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "pattern": "matching"}
MIB = 2**20


def sections() -> dict[str, tuple[type[Section], FieldInfo]]:
    """Class and field of each section of a configuration."""
    found = {}
    for name, field in Config.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        found[name] = (kind, field)
    return found


def default_of(field: FieldInfo) -> Any:
    """A field's default, made if it is made."""
    return field.get_default(call_default_factory=True)


def describe_settings() -> str:
    """Every setting with its default, what presets set instead, and its meaning, as text."""
    presets = preset_values()
    lines = [f"method.preset is {MethodConfig().preset} unless set; what it sets is marked below with *\n"]

    def describe(model: type[Section], prefix: str) -> None:
        for key, field in model.model_fields.items():
            name, default = f"{prefix}.{key}", default_of(field)
            if isinstance(default, Section):
                describe(type(default), name)
                continue
            lines.append(f"  {name}={json.dumps(default, default=str)}")
            for preset, value in presets.get(name, []):
                mark = "*" if preset == f"method.preset={MethodConfig().preset}" else " "
                lines.append(f"    {mark} {json.dumps(value)} with {preset}")
            lines.append("      " + " ".join((field.description or "").split()))

    for name, (kind, field) in sections().items():
        lines.append(f"{name}: {field.description}")
        describe(kind, name)
    return "\n".join(lines) + "\n"


def training_tables() -> str:
    """Every setting of a training as Markdown, section by section."""
    return "\n".join(
        section_table(name, kind, str(field.description), field.default)
        for name, (kind, field) in sections().items()
    )


def section_table(name: str, section: type[Section], about: str, given: Section) -> str:
    """One section as a heading and a table, and the sections inside it.

    Args:
        name: Its dotted name.
        section: Its class.
        about: What it is for.
        given: The values that hold where the whole section is left out.
    """
    presets = preset_values()
    rows, below = [], []
    mappings: dict[type[Section], list[str]] = {}
    for key, field in section.model_fields.items():
        dotted, default = f"{name}.{key}", default_of(field)
        meaning = plain(field.description)
        if isinstance(default, Section):
            below.append(section_table(dotted, type(default), str(field.description), default))
            anchor = dotted.replace(".", "")  # as mkdocs makes it from the heading
            rows.append((dotted, "section", "", f"{meaning} See [{dotted}](#{anchor})."))
            continue
        shown = value_text(default)
        if getattr(given, key) != default:
            shown += f" ({value_text(getattr(given, key))} without a `{name}` section)"
        for preset, value in presets.get(dotted, []):
            meaning += f" {value_text(value)} with `{preset}`."
        rows.append((dotted, values_text(field), shown, meaning))
        for part in get_args(field.annotation):
            if isinstance(part, type) and issubclass(part, Section):
                mappings.setdefault(part, []).append(f"`{dotted}`")
    for kind, names in mappings.items():
        below.append(f"{', '.join(names)} as a mapping: {plain(kind.__doc__)}\n\n{model_table(kind, 'key')}")
    return "\n".join([f"## {name}\n", f"{plain(section.__doc__ or about)}\n", table("setting", rows), *below])


def model_table(model: type[BaseModel], title: str, prefix: str = "", *, upper: bool = False) -> str:
    """The fields of a class as a table.

    Args:
        model: The class.
        title: Head of the first column.
        prefix: What stands before each name.
        upper: Names in upper case, as those of environment variables.
    """
    return table(title, [
        (prefix + (key.upper() if upper else key), values_text(field), value_text(default_of(field)),
         plain(field.description))
        for key, field in model.model_fields.items()
    ])  # fmt: skip


def preset_table() -> str:
    """What each preset sets, as Markdown."""
    lines = ["| preset | sets |", "|---|---|"]
    for preset, parts in METHOD_PRESETS.items():
        items = [f"`{s}.{k}={json_text(v)}`" for s, values in parts.items() for k, v in values.items()]
        lines.append(f"| `method.preset={preset}` | {', '.join(items)} |")
    for preset, values in MODEL_PRESETS.items():
        items = [f"`model.{k}={json_text(v)}`" for k, v in values.items()]
        lines.append(f"| `model.preset={preset}` | {', '.join(items)} |")
    return "\n".join(lines)


def table(title: str, rows: list[tuple[str, str, str, str]]) -> str:
    """Rows of name, values, default and meaning as Markdown."""
    lines = [f"| {title} | values | default | meaning |", "|---|---|---|---|"]
    for name, values, default, meaning in rows:
        # an escaped bar still shows as a bar, also in code font
        values, meaning = values.replace("|", "\\|"), meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {values} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def plain(text: str | None) -> str:
    """A docstring as one line of Markdown."""
    return " ".join((text or "").split()).replace("``", "`")


def json_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def value_text(value: Any) -> str:
    """A default in code font."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, float):
        return f"`{round(value, 4):g}`"
    if isinstance(value, int) and not isinstance(value, bool) and value >= MIB and value % MIB == 0:
        return f"`{value // MIB}MiB`"
    return f"`{json_text(value)}`"


def values_text(field: FieldInfo) -> str:
    """Type, choices and range of a field."""
    bounds = [
        f"{words} `{limit}`"
        for item in field.metadata
        for name, words in BOUNDS.items()
        if (limit := getattr(item, name, None)) is not None
    ]
    return ", ".join([type_text(field.annotation), *bounds])


def type_text(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " ".join(f"`{item}`" for item in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(item) for item in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(type_text(item) for item in arguments)}]"
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping"
    return BASIC[annotation]
