"""From YAML and ``key.sub=value`` overrides to a validated configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from protoseg.config.method import MethodConfig
from protoseg.config.presets import METHOD_PRESETS, MODEL_PRESETS
from protoseg.config.sections import Config
from protoseg.config.yaml_names import Spots, find_spots, parse_yaml
from protoseg.errors import ConfigError
from protoseg.files import PROJECT_ROOT
from protoseg.records import validation_problems


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``top`` over it, section by section."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def apply_override(raw: dict[str, Any], item: str) -> None:
    """Write ``key.sub=value`` into ``raw``; the value stays text, so that pydantic parses it."""
    key, separator, value = item.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {item!r} must have the form key.sub=value")
    node = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            child = node[parent] = {}
        node = child
    try:
        structured = value.startswith(("[", "{")) or value == "null"
        node[leaf] = json.loads(value) if structured else value
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"override {item!r}: the value is not valid JSON ({error}); names need double quotes, and all "
            f"of it single ones for the shell, as '{key}=[\"road\"]'"
        ) from error


def explain_problems(
    error: ValidationError, source: str, top: str = "config", raw: Any = None, spots: Spots | None = None
) -> str:
    """Every problem of a file on a line of its own.

    Args:
        error: The problems.
        source: The file.
        top: What to call a problem that belongs to no key.
        raw: What was validated; without it keys are named with pydantic's own parts.
        spots: Where values stand in the file.
    """
    texts = validation_problems(error, names={"": top})
    keys = [_keys(raw, item["loc"]) for item in error.errors()]
    problems = []
    for item, text, key in zip(error.errors(), texts, keys, strict=True):
        value, needs_text = item["input"], item["type"] == "string_type"
        inner = any(len(other) > len(key) and other[: len(key)] == key for other in keys)
        if needs_text and isinstance(value, list | dict) and inner:
            continue  # the other kinds that the setting may have
        loc = ".".join(map(str, item["loc"]))
        text = ".".join(key) + text.removeprefix(loc) if raw is not None and loc else text
        if needs_text and not isinstance(value, str | list | dict):
            line, written = (spots or {}).get(key, (None, str(value)))
            at = "" if line is None else f" (line {line})"
            text += f'; put it in quotes{at}: "{written}"'
            text += ", or write null for none" if isinstance(value, bool) else ""
        if text not in problems:
            problems.append(text)
    return "\n  ".join([f"{source}: {len(problems)} problem(s)", *problems])


def _keys(raw: Any, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """A place in ``raw`` by its keys alone, without the kinds that pydantic tried."""
    if raw is None:
        return tuple(map(str, loc))
    keys = []
    for position, part in enumerate(loc):
        inside = part in raw if isinstance(raw, dict) else isinstance(raw, list) and isinstance(part, int)
        if inside:
            raw = raw[part] if not isinstance(raw, list) or int(part) < len(raw) else None
        if inside or position < 2:
            keys.append(str(part))
    return tuple(keys)


def parse_config(raw: dict[str, Any], source: str = "config", spots: Spots | None = None) -> Config:
    """Apply presets below ``raw`` and validate.

    Args:
        raw: Settings by section.
        source: What to call them in a message.
        spots: Where values stand in the file.

    Raises:
        ConfigError: With one line for each problem.
    """
    method = raw.get("method") or {}
    name = method.get("preset", MethodConfig().preset) if isinstance(method, dict) else None
    merged = merge(METHOD_PRESETS.get(str(name), {}), {k: v for k, v in raw.items() if v is not None})
    model = merged.get("model")
    if isinstance(model, dict) and model.get("preset") in MODEL_PRESETS:
        merged["model"] = merge(MODEL_PRESETS[model["preset"]], model)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(explain_problems(error, source, raw=merged, spots=spots)) from error


def shipped_configs() -> Path:
    """Folder of the configurations that come along: beside the code, or in an installed package inside it."""
    installed = PROJECT_ROOT / "protoseg" / "configs"
    return installed if installed.is_dir() else PROJECT_ROOT / "configs"


def find_config(path: str | Path) -> Path:
    """The file itself, the one of this path in the project, or a shipped one (``quickstart``)."""
    file = Path(path)
    if file.is_file() or file.is_absolute():
        return file
    name = Path(*file.parts[1:]) if file.parts[:1] == ("configs",) else file
    shipped = shipped_configs() / name
    tried = [PROJECT_ROOT / file, shipped, shipped.with_name(f"{shipped.name}.yaml")]
    return next((place for place in tried if place.is_file()), file)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file is missing, is not YAML or is not a mapping.
    """
    try:
        raw = parse_yaml(find_config(path).read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        folder = shipped_configs()
        known = sorted(file.name for file in folder.glob("*.yaml"))
        raise ConfigError(
            f"config file {path} not found; these come along: {', '.join(known)} (in {folder})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {path} must be a mapping of sections, got {type(raw).__name__}")
    return raw


def read_config(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping over the file that its ``base`` key names, which may have a base itself.

    Args:
        path: File; a base is relative to the file that names it.
        above: Files whose base this is, the first one first.

    Raises:
        ConfigError: If a file cannot be used, or is its own base.
    """
    raw = read_yaml(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a config file, got {base!r}")
    file = find_config(path).resolve()
    chain = (*above, file)
    below = (file.parent / base).resolve()
    if below in chain:
        names = " -> ".join(item.name for item in (*chain, below))
        raise ConfigError(f"{path}: base leads back to where it started: {names}")
    if not below.is_file():
        raise ConfigError(f"{path}: base {base} not found; it is looked for in {file.parent}")
    return merge(read_config(below, chain), raw)


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file with its bases (or the defaults, for None) and apply ``key.sub=value`` overrides.

    Raises:
        ConfigError: With a readable text naming file, key and cure.
    """
    raw = read_config(path) if path is not None else {}
    for item in overrides or []:
        apply_override(raw, item)
    if path is None:
        return parse_config(raw)
    return parse_config(raw, str(path), find_spots(find_config(path).read_text(encoding="utf-8-sig")))
