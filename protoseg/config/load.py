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


def _explain(error: ValidationError, source: str) -> str:
    lines = [f"{source}: {error.error_count()} problem(s)"]
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "config"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
        lines.append(f"  {place}: {message}{got}")
    return "\n".join(lines)


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
        raise ConfigError(_explain(error, source)) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file is missing, is not YAML or is not a mapping.
    """
    file = Path(path)
    if not file.is_file() and not file.is_absolute() and (PROJECT_ROOT / file).is_file():
        file = PROJECT_ROOT / file
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
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


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file (or the defaults, for None) and apply ``key.sub=value`` overrides.

    Raises:
        ConfigError: With a readable text naming file, key and cure.
    """
    raw = read_yaml(path) if path is not None else {}
    for item in overrides or []:
        apply_override(raw, item)
    return parse_config(raw, str(path) if path is not None else "config")
