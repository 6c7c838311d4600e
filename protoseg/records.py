"""What settings and records on disk are made of, and what is wrong with one, as text.

Needs pydantic only: a wrong setting is reported in a fraction of a second, and the service needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError


class Section(BaseModel):
    """Base of every section of settings: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Record(Section):
    """Base of every record; like a configuration section, it refuses unknown keys and never changes."""


def _whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


# overrides are text, which pydantic turns into numbers, but not into choices among numbers
NumberChoice = BeforeValidator(_whole_number)


def validation_problems(
    error: ValidationError, names: Mapping[str, str] | None = None, secret: Collection[str] = ()
) -> list[str]:
    """Every problem of a pydantic error as ``key: message (got value)``.

    Args:
        error: The error.
        names: What to call the first part of a key, where that is not the part itself (a variable, say).
        secret: First parts of keys whose value is not told.
    """
    problems = []
    for item in error.errors():
        first, *rest = (str(part) for part in item["loc"] or [""])
        message = item["msg"].removeprefix("Value error, ")
        message = "unknown key" if item["type"] == "extra_forbidden" else message
        hidden = isinstance(item["input"], dict) or first in secret
        got = "" if hidden else f" (got {repr(item['input'])[:200]})"
        problems.append(f"{'.'.join([(names or {}).get(first, first), *rest])}: {message}{got}")
    return problems


def explain_validation(error: ValidationError) -> str:
    """The first problem of a pydantic error as ``key: message (got value)``."""
    return validation_problems(error)[0]
