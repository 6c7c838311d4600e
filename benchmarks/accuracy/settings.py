"""Settings of a training: a file with overrides, what differs from the defaults, and a hash of it."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from protoseg.config.load import apply_override, find_config, parse_config, read_config
from protoseg.config.sections import Config

# settings that say where results go or how data is read, and never change a figure
NO_EFFECT = {"run.name", "run.dir", "run.project", "data.cache", "data.num_workers", "train.trackers",
             "train.save_every", "train.keep_states"}  # fmt: skip


def resolve(path: str, overrides: list[str]) -> Config:
    """A configuration file with overrides, as ``load_config`` reads it; the file is parsed once.

    Raises:
        ConfigError: If the settings are wrong.
    """
    file = find_config(path)
    stamp = file.stat().st_mtime_ns if file.is_file() else 0
    raw = copy.deepcopy(_parsed(path, stamp))
    for item in overrides:
        apply_override(raw, item)
    return parse_config(raw, path)


@functools.lru_cache(maxsize=32)
def _parsed(path: str, stamp: int) -> dict[str, Any]:
    return read_config(path)


def override_texts(seed: int, *parts: dict[str, Any]) -> list[str]:
    """Settings as ``key.sub=value``, later parts over earlier ones."""
    return [f"{key}={override_text(value, seed)}" for part in parts for key, value in part.items()]


def length_texts(seed: int, steps: int, warmup: int, evaluations: int) -> list[str]:
    """What the study itself sets."""
    return [
        f"train.seed={seed}",
        f"train.max_steps={steps}",
        f"train.warmup_steps={warmup}",
        f"train.eval_every={-(-steps // evaluations)}",
        "data.cache=true",
    ]


def override_text(value: Any, seed: int) -> str:
    """A YAML value as the text that ``key.sub=value`` takes, with ``{seed}`` filled in."""
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    return json.dumps(value)


def changed_settings(config: Config) -> dict[str, Any]:
    """Settings that differ from the code's defaults, as ``section.key`` -> value."""
    found: dict[str, Any] = {}

    def walk(values: dict[str, Any], defaults: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            default = defaults.get(key)
            if isinstance(value, dict) and isinstance(default, dict):
                walk(value, default, f"{prefix}{key}.")
            elif value != default:
                found[f"{prefix}{key}"] = value

    walk(config.model_dump(mode="json"), Config().model_dump(mode="json"), "")
    return found


def config_hash(config: Config) -> str:
    """Hash of the settings that differ from the defaults and can change a figure.

    A setting that a later version adds leaves it as it is, so that records stay valid; and what configures a
    part that is off changes nothing. Of the run that the weights come from only the name counts.
    """
    off = [] if config.method.prototypes else ["prototypes."]
    if not config.method.unlabeled:
        off += ["pseudo_labels.", "data.unlabeled", "views.mixing", "views.strong_views"]
        # the colour operations of the strong view
        off += [] if config.views.labeled_jitter else ["views.jitter", "views.gray", "views.blur"]
    settings = {
        key: value
        for key, value in changed_settings(config).items()
        if key not in NO_EFFECT and (key == "pseudo_labels.held_out" or not key.startswith(tuple(off)))
    }
    for key in ("train.start_from", "pseudo_labels.teacher"):
        if key in settings:
            settings[key] = Path(settings[key]).name
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
