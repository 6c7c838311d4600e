"""``protoseg train``: in this process, or in several that accelerate starts.

One process on one machine needs no launcher: the training runs here, and is to the byte what
``accelerate launch -m protoseg.train`` makes with one process. Several GPUs, ``--processes`` or a file that
``accelerate config`` wrote start accelerate's launcher; its advice and its stack traces are left out, so that
an error ends with the trainer's own line.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protoseg.cli.commands import Command
from protoseg.cli.parsers import called, main_of, parser_of
from protoseg.errors import INTERRUPTED, UserError, guarded

TRAINER = Command("train", "protoseg.train.__main__", "", "")
STARTED_AS = "_PROTOSEG_STARTED_AS"
"""Environment variable with the command that goes on with a run, for its processes."""
_LAUNCHERS = ("LOCAL_RANK", "RANK", "ACCELERATE_MIXED_PRECISION")
_EPILOG = (
    "Without arguments: the shipped configuration quickstart, on embedded data. One process trains right "
    "here; where several GPUs are visible, one process each is started by accelerate's launcher "
    "(CUDA_VISIBLE_DEVICES chooses). --processes on a machine without a GPU starts CPU processes. Several "
    "machines, or other options of the launcher: accelerate launch -m protoseg.train (docs/scaling.md)."
)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the trainer's exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_intermixed_args(given)
    own = _without_processes(given)

    # what the trainer prints to go on with the run
    sys.argv = [sys.argv[0], *own]

    def body() -> int:
        wanted = arguments.processes
        if wanted is not None and wanted < 1:
            raise UserError(f"--processes must be at least 1, got {wanted}")
        os.environ[STARTED_AS] = "protoseg train" + (f" --processes {wanted}" if wanted else "")
        if getattr(arguments, "settings", False) or any(name in os.environ for name in _LAUNCHERS):
            return main_of(TRAINER)(own)
        default = None if wanted else _default_file()
        gpus = 0 if default else num_gpus()
        processes = wanted or max(1, gpus)
        if default is None and processes == 1:
            return main_of(TRAINER)(own)
        why = f"as {default} says" if default else f"{processes} processes"
        sys.stderr.write(f"accelerate starts the training: {why} (--processes 1 trains in this one)\n")
        return launch([] if default else _launcher_flags(processes, gpus), own)

    return guarded(body)


def _parser() -> argparse.ArgumentParser:
    """The trainer's own, with ``--processes``."""
    with called(TRAINER.own_name, "protoseg train"):
        parser = parser_of(main_of(TRAINER))
    parser.epilog = _EPILOG
    parser.add_argument(
        "--processes", type=int, metavar="N", help="training processes (default: one for each visible GPU)"
    )
    return parser


def _without_processes(words: list[str]) -> list[str]:
    """The words without ``--processes N``, in any spelling that the parser has taken."""
    kept, skip = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif len(option) > 2 and "--processes".startswith(option):
            skip = not equals
        else:
            kept.append(word)
    return kept


def num_gpus() -> int:
    """CUDA devices that torch sees; imports it, which takes seconds, only where there may be several."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1") or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return 0
    if sys.platform == "darwin":
        return 0
    if sys.platform == "linux" and not Path("/dev/kfd").exists():
        devices = list(Path("/dev").glob("nvidia[0-9]*"))
        if len(devices) < 2:
            return len(devices)
    import torch

    return torch.cuda.device_count()


def _default_file() -> Path | None:
    """What ``accelerate config`` wrote, which ``accelerate launch`` reads without being told."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser()
    files = [home / "accelerate" / f"default_config.{suffix}" for suffix in ("json", "yaml")]
    return next((file for file in files if file.is_file()), None)


def _launcher_flags(processes: int, gpus: int) -> list[str]:
    """What makes accelerate start that many processes here, all of it said so that it advises nothing.

    Raises:
        UserError: If there are GPUs, but fewer than processes.
    """
    if 0 < gpus < processes:
        raise UserError(
            f"--processes {processes}, but {gpus} GPU(s) are visible; each process needs one "
            "(ACCELERATE_USE_CPU=true trains on the CPU)"
        )
    flags = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    flags += ["--num_processes", str(processes), "--main_process_port", "0"]
    if processes > 1:
        # this only names the launcher (torchrun); accelerate 1.15 starts one process for --cpu
        flags.append("--multi_gpu")
    if gpus == 0:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return flags


def launch(flags: list[str], arguments: list[str]) -> int:
    """Start the training through accelerate's launcher, and wait for it.

    Args:
        flags: The launcher's own; none: as its file says.
        arguments: The trainer's.

    Returns:
        The first failed process's exit code, or 0; 130 after Ctrl-C.
    """
    for name in ("accelerate.commands.launch", "torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = [*flags, "-m", "protoseg.train", *arguments]
    # without --quiet a single process's exit code is told
    parsed = launch_command_parser().parse_args(words)
    try:
        with _interrupts_are_the_trainers():
            launch_command(parsed)
    except ChildFailedError as failed:
        return _exit_code(failed.get_first_failure()[1].exitcode)
    except SignalException as stopped:
        return INTERRUPTED if stopped.sigval == signal.SIGINT else 128 + stopped.sigval
    except Exception as failed:
        code = getattr(failed, "returncode", None)
        if code is None:
            raise
        return _exit_code(code)
    return 0


def _exit_code(code: int) -> int:
    """As shells count a process that a signal ended."""
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _interrupts_are_the_trainers() -> Iterator[None]:
    """Ctrl-C reaches the training as well, which saves its state: the launcher waits for that.

    A handler, and not SIG_IGN, which the training would inherit.
    """

    def wait(number: int, frame: Any) -> None:
        pass

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
