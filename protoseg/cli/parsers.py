"""The commands' own parsers: called by another name, or taken out of a command without running it.

Commands are reached through ``main(argv)`` alone, so that each stays a module that runs by itself; what is
changed is therefore the parser that it makes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from protoseg.cli.commands import Command

Main = Callable[[list[str] | None], int]


class _TakenError(Exception):
    """Carries a parser out of the command that has just made it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__("a parser")
        self.parser = parser


def main_of(command: Command) -> Main:
    """The command's entry point; importing it may take seconds."""
    return cast("Main", importlib.import_module(command.module).main)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def called(own_name: str, prog: str) -> Iterator[None]:
    """While it lasts, a parser whose name ends with ``own_name`` is called ``prog``."""
    init = argparse.ArgumentParser.__init__

    def renamed(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        if str(kwargs.get("prog") or "").endswith(own_name):
            kwargs["prog"] = prog
        init(self, *args, **kwargs)

    with _replaced(argparse.ArgumentParser, "__init__", renamed):
        yield


def parser_of(main: Main) -> argparse.ArgumentParser:
    """The parser of a command, which does not run.

    Raises:
        RuntimeError: If the command makes none.
    """

    def take(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        raise _TakenError(self)

    with (
        _replaced(argparse.ArgumentParser, "parse_known_args", take),
        _replaced(argparse.ArgumentParser, "parse_known_intermixed_args", take),
    ):
        try:
            main([])
        except _TakenError as taken:
            return taken.parser
    raise RuntimeError(f"{main.__module__} parses no arguments")
