"""Errors that a user can put right, and how a command reports one.

Every kind is a ``UserError``: its text says what was got, what was expected and what to do, and a command
ends with that text and exit code 1, without a traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
FIRST_SPEAKS_S = 10.0
"""How long the other processes wait for the first one to say what is wrong."""


class UserError(ValueError):
    """Something that the user can put right; the text says how."""


class ConfigError(UserError):
    """A configuration that cannot be used."""


class DataError(UserError):
    """Data that cannot be used; the text names the file, what is wrong with it and what to do."""


class ModelError(UserError):
    """A network that cannot be built as asked."""


class WeightsError(UserError):
    """Encoder weights that cannot be found or do not fit."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written."""


class ManifestError(UserError):
    """A bundle that cannot be used; the text is one line."""


class ExportError(UserError):
    """Something that cannot be exported, loaded or compared."""


class TrainingStoppedError(UserError):
    """The run cannot go on; the text says why and what to change."""


def check_choice(name: str, values: object, known: Iterable[object]) -> None:
    """Refuse a value (or one of a list) that is none of the known ones.

    Raises:
        UserError: With the known ones.
    """
    choices = list(known)
    for value in values if isinstance(values, list | tuple) else (values,):
        if value not in choices:
            raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def explain(error: Exception) -> str:
    """The text for the user behind an error; a full disk is called that."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"the disk is full ({error.filename or 'while writing'}); what was there before is unchanged"
    return str(error).strip() or type(error).__name__


def report(error: Exception) -> int:
    """Print an error on standard error.

    Of several processes the first prints it, for which the others wait: a launcher ends all once one of them
    has ended, and the first might be the slowest. What they may be the only ones to have met, for each reads
    its own images, they print at once.

    Returns:
        1, the exit code.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank and not isinstance(error, DataError):
        time.sleep(FIRST_SPEAKS_S)
    process = f" (process {rank})" if rank else ""
    sys.stderr.write(f"error{process}: {explain(error)}\n")
    return 1


def guarded(body: Callable[[], int], *also: type[Exception]) -> int:
    """Run a command's body; what a user can cause becomes one text and an exit code.

    Args:
        body: Returns the exit code.
        also: Errors beside ``UserError`` and ``OSError`` whose text is for the user.

    Returns:
        The body's exit code; 1 for an error; 130 for Ctrl-C, as shells count it.
    """
    expected: tuple[type[Exception], ...] = (UserError, OSError, *also)
    try:
        return body()
    except expected as error:
        return report(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was there before is unchanged\n")
        return INTERRUPTED
