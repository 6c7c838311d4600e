"""What a run shows: a live bar on a terminal, whole lines in a file, JSON objects for a machine.

tqdm draws the bar: it is needed for evaluations and predictions anyway, and writes lines above itself.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from tqdm import tqdm

logger = logging.getLogger("protoseg")

Output = Literal["text", "quiet", "json"]
"""``text`` for people; ``quiet``: warnings and errors alone; ``json``: one object a line."""
LINE_EVERY_S = 15.0


def plain(value: Any) -> Any:
    """Values that JSON has: NaN and infinities become null, tensors and numpy scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def in_words(seconds: float) -> str:
    """A time that is left, as people say it."""
    for unit, size in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= (1.5 * size if size > 60 else size):
            number = round(seconds / size)
            return f"about {number} {unit}{'s' if number > 1 else ''} left"
    return "less than a minute left"


def _write_line(text: str) -> None:
    """A line on the standard output, above the bar if there is one; there at once."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def _write_object(event: str, **values: Any) -> None:
    _write_line(json.dumps(plain({"event": event, **values}), ensure_ascii=False))


class _Messages(logging.Handler):
    """Messages as lines of the standard output."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        try:
            text = self.format(record)
            if self.output == "json":
                _write_object("message", level=record.levelname.lower(), text=text.strip("\n"))
            else:
                _write_line(text)
        except Exception:  # as every handler of logging does: a closed pipe is not the run's fault
            self.handleError(record)


def start_logging(*, main: bool, output: Output = "text") -> None:
    """Messages of a run on the standard output, those of the first process only, but for errors."""
    level = logging.WARNING if output == "quiet" else logging.INFO
    logging.basicConfig(
        level=level if main else logging.ERROR, format="%(message)s", handlers=[_Messages(output)], force=True
    )
    for noisy in ("accelerate", "httpx", "timm", "PIL", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Terminal:
    """Shows how a run goes, on its first process.

    Args:
        output: What for.
        main: Whether this is the first process; others show nothing.
        step: Optimiser steps done.
        max_steps: Steps of the run.
    """

    def __init__(self, output: Output, *, main: bool, step: int, max_steps: int) -> None:
        self.output, self.main, self.max_steps = output, main, max_steps
        self.live = main and output == "text" and sys.stderr.isatty()
        self.bar = tqdm(
            total=max_steps, initial=step, disable=not self.live, desc="train", dynamic_ncols=True,
            mininterval=0.5,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} steps{postfix}",
        )  # fmt: skip
        self.spoke = -math.inf

    def progress(self, step: int, text: str) -> None:
        """Show how it goes: beside the bar, or now and then as a line."""
        if self.live:
            self.bar.set_postfix_str(text)
        elif self.main and self.output == "text" and time.monotonic() - self.spoke >= LINE_EVERY_S:
            self.spoke = time.monotonic()
            logger.info("step %d of %d: %s", step, self.max_steps, text)

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Write a line on the first process; not with ``json``, which has it as an object."""
        if self.main and not (self.output == "json" and level == logging.INFO):
            logger.log(level, "%s", text)

    def event(self, name: str, **values: Any) -> None:
        """Write an object, if this is for a machine."""
        if self.main and self.output == "json":
            _write_object(name, **values)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
