"""The one error of this package that a user sees, and how entry points report it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from protoseg.errors import ManifestError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130


class ExportError(ValueError):
    """Something that cannot be exported, loaded or compared; one line that says what to do."""


def report(error: Exception) -> int:
    """Print a user's error as one block on stderr.

    Returns:
        1, the exit code.
    """
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        text = f"the disk is full ({error.filename or 'while writing'}); what was there before is unchanged"
    sys.stderr.write(f"error: {text}\n")
    return 1


def guarded(body: Callable[[], int], *user_errors: type[Exception]) -> int:
    """Run an entry point's body; errors that a user can cause become one line and exit code 1.

    Ctrl-C is one line and exit code 130, as shells count it.
    """
    expected: tuple[type[Exception], ...] = (ExportError, ManifestError, OSError, *user_errors)
    try:
        return body()
    except expected as error:
        return report(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was there before is unchanged\n")
        return INTERRUPTED
