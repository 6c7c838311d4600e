"""What mkdocs cannot do by itself: settings reference, pages from files of the root, links that leave docs/.

The reference is made from the configuration classes at every build, so that it says what the code does.
Nothing here imports torch or BentoML.
"""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
# the classes of this checkout, not of another one that happens to be installed
sys.path.insert(0, str(ROOT))

from protoseg.config.presets import METHOD_PRESETS, MODEL_PRESETS, preset_values  # noqa: E402
from protoseg.config.sections import Config  # noqa: E402
from protoseg.manifest import Section  # noqa: E402
from serving.settings import PREFIX, Settings  # noqa: E402

if TYPE_CHECKING:  # the reference is tested where mkdocs is not installed, too
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
BASIC = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "pattern": "matching"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files of the root."""
    from mkdocs.structure.files import File

    for source, page in ROOT_PAGES.items():
        text = rewrite_links((ROOT / source).read_text(encoding="utf-8"), PurePosixPath())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the reference and turn links to files outside docs/ into what the site has."""
    del config, files
    markdown = markdown.replace("<!-- reference: training -->", training_reference())
    markdown = markdown.replace("<!-- reference: presets -->", preset_reference())
    markdown = markdown.replace("<!-- reference: serving -->", serving_reference())
    return rewrite_links(markdown, PurePosixPath("docs", page.file.src_uri).parent)


def rewrite_links(text: str, folder: PurePosixPath) -> str:
    """Links of a file in ``folder`` of the repository, as the site needs them.

    A page keeps its link; any other file of the repository, which the site does not have, is named in
    code font.
    """

    def replace(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = os.path.normpath(folder / target)
        if path in ROOT_PAGES:
            return f"[{label}]({ROOT_PAGES[path]}{anchor})"
        if path == "README.md":
            return f"[{label}](index.md)"
        if path.startswith("docs/"):
            return f"[{label}]({path.removeprefix('docs/')}{anchor})"
        return f"`{path}`" if label.strip("`") in (path, target) else f"{label} (`{path}`)"

    return LINK.sub(replace, text)


def training_reference() -> str:
    """Every setting of a training, section by section."""
    presets = {
        name: [f"{value_text(value)} with `{preset}`." for preset, value in found]
        for name, found in preset_values().items()
    }
    parts = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        parts.append(section_table(name, section, str(field.description), field.default, presets))
    return "\n".join(parts)


def section_table(
    name: str, section: type[Section], about: str, given: Section, presets: dict[str, list[str]]
) -> str:
    """One section as a heading and a table, and the sections inside it.

    Args:
        name: Its dotted name.
        section: Its class.
        about: What it is for.
        given: The values that hold where the whole section is left out.
        presets: Dotted name of a setting -> what presets set it to.
    """
    lines = [
        f"## {name}\n",
        f"{plain(section.__doc__ or about)}\n",
        "| setting | values | default | meaning |",
    ]
    lines.append("|---|---|---|---|")
    inner: list[str] = []
    mappings: dict[type[Section], list[str]] = {}
    for key, item in section.model_fields.items():
        dotted = f"{name}.{key}"
        default = item.get_default(call_default_factory=True)
        if isinstance(default, Section):
            inner.append(section_table(dotted, type(default), str(item.description), default, presets))
            lines.append(f"| `{dotted}` | section | | {cell(item)} See [{dotted}](#{anchor_of(dotted)}). |")
            continue
        shown = value_text(default)
        if getattr(given, key) != default:
            shown += f" ({value_text(getattr(given, key))} without a `{name}` section)"
        meaning = " ".join([cell(item), *presets.get(dotted, [])])
        lines.append(f"| `{dotted}` | {values_text(item)} | {shown} | {meaning} |")
        for part in get_args(item.annotation):
            if isinstance(part, type) and issubclass(part, Section):
                mappings.setdefault(part, []).append(f"`{dotted}`")
    return "\n".join([*lines, "", *inner, *(mapping_table(k, v) for k, v in mappings.items())])


def mapping_table(kind: type[Section], settings: list[str]) -> str:
    """The keys of a mapping that ``settings`` take instead of a text."""
    lines = [f"{', '.join(settings)} as a mapping: {plain(kind.__doc__ or '')}\n"]
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, item in kind.model_fields.items():
        default = value_text(item.get_default(call_default_factory=True))
        lines.append(f"| `{key}` | {values_text(item)} | {default} | {cell(item)} |")
    return "\n".join(lines) + "\n"


def anchor_of(heading: str) -> str:
    """Anchor that mkdocs gives to a heading of a dotted name."""
    return heading.replace(".", "")


def preset_reference() -> str:
    """What each preset sets."""
    lines = ["| preset | sets |", "|---|---|"]
    for preset, sections in METHOD_PRESETS.items():
        items = [f"{s}.{k}={json_text(v)}" for s, values in sections.items() for k, v in values.items()]
        lines.append(f"| `method.preset={preset}` | {', '.join(f'`{item}`' for item in items)} |")
    for preset, values in MODEL_PRESETS.items():
        items = [f"model.{k}={json_text(v)}" for k, v in values.items()]
        lines.append(f"| `model.preset={preset}` | {', '.join(f'`{item}`' for item in items)} |")
    return "\n".join(lines) + "\n"


def serving_reference() -> str:
    """Every setting of the service."""
    lines = ["| variable | values | default | meaning |", "|---|---|---|---|"]
    for key, item in Settings.model_fields.items():
        default = value_text(item.get_default(call_default_factory=True))
        lines.append(f"| `{PREFIX}{key.upper()}` | {values_text(item)} | {default} | {cell(item)} |")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """A docstring as one line of Markdown."""
    return " ".join(text.split()).replace("``", "`")


def cell(field: FieldInfo) -> str:
    """A field's docstring as a table cell."""
    return plain(field.description or "").replace("|", "\\|")


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
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**20 and value % 2**20 == 0:
        return f"`{value // 2**20}MiB`"
    return f"`{json_text(value)}`"


def values_text(field: FieldInfo) -> str:
    """Type, choices and range of a field."""
    parts = [type_text(field.annotation)]
    for item in field.metadata:
        for name, words in BOUNDS.items():
            if (limit := getattr(item, name, None)) is not None:
                # an escaped bar still shows as a bar, also in code font
                parts.append(f"{words} `{limit}`".replace("|", "\\|"))
    return ", ".join(parts)


def type_text(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " ".join(f"`{item}`" for item in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(item) for item in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        return f"[{', '.join(type_text(item) for item in arguments)}]"
    if origin is list:
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping"
    return BASIC[annotation]
