"""``protoseg completion SHELL``: what a shell needs to complete commands, options and file names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shtab

from protoseg.cli.commands import COMMANDS
from protoseg.cli.parsers import called, main_of, parser_of

_EPILOG = """\
The script is written once, not at each start of a shell (make the folder first):
  bash  protoseg completion bash > ~/.local/share/bash-completion/completions/protoseg
  zsh   protoseg completion zsh > ~/.zfunc/_protoseg       (with  fpath+=~/.zfunc  before compinit in .zshrc)
  tcsh  protoseg completion tcsh > ~/.protoseg.csh         (and  source ~/.protoseg.csh  in .tcshrc)
  fish  protoseg completion fish > ~/.config/fish/completions/protoseg.fish
"""


def main(argv: list[str] | None = None) -> int:
    """Print the script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="protoseg completion",
        description="Print the shell script that completes protoseg's commands, options and file names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="shell that reads the script")
    arguments = parser.parse_args(argv)
    sys.stdout.write(shtab.complete(whole_parser(), arguments.shell) + "\n")
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command below it; making it imports them all."""
    parser = argparse.ArgumentParser(prog="protoseg", description="Semi-supervised semantic segmentation.")
    parser.add_argument("-V", "--version", action="store_true", help="versions of protoseg and its libraries")
    below = parser.add_subparsers()
    for name, command in COMMANDS.items():
        with called(command.own_name, f"protoseg {name}"):
            own = parser_of(main_of(command))
        for action in own._actions:
            if _names_files(action):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        # % is for argparse, which fills the help text in
        below.add_parser(name, parents=[own], add_help=False, help=command.summary.replace("%", "%%"))
    return parser


def _names_files(action: argparse.Action) -> bool:
    """Whether the values are files; settings (``key.sub=value``) may be, too, and hinder nothing."""
    if action.choices is not None or action.nargs == 0:
        return False
    return action.type is Path or not action.option_strings or action.dest in ("config", "root")
