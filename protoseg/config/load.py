"""From YAML and ``key.sub=value`` overrides to a validated configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from protoseg.config.presets import METHOD_PRESETS, MODEL_PRESETS
from protoseg.config.sections import Config, MethodConfig
from protoseg.errors import ConfigError
from protoseg.files import PROJECT_ROOT
from protoseg.manifest import validation_problems


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
        raise ConfigError(f"override {item!r}: the value is not valid JSON ({error})") from error


def explain_problems(error: ValidationError, source: str, top: str = "config") -> str:
    """Every problem of a file on a line of its own; ``top`` names one that belongs to no key."""
    problems = validation_problems(error, names={"": top})
    return "\n  ".join([f"{source}: {len(problems)} problem(s)", *problems])


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Apply presets below ``raw`` and validate.

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
        raise ConfigError(explain_problems(error, source)) from error


def find_config(path: str | Path) -> Path:
    """The file itself, or the one of this name in the project."""
    file = Path(path)
    inside = not file.is_file() and not file.is_absolute() and (PROJECT_ROOT / file).is_file()
    return PROJECT_ROOT / file if inside else file


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file is missing, is not YAML or is not a mapping.
    """
    try:
        raw = yaml.safe_load(find_config(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.name for p in (PROJECT_ROOT / "configs").glob("*.yaml"))
        raise ConfigError(f"config file {path} not found; configs/ has {', '.join(known)}") from None
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
    return parse_config(raw, str(path) if path is not None else "config")
