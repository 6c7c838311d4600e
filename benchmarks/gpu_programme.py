r"""What only a GPU can show, in order of value and within the minutes that there are.

    python -m benchmarks.gpu_programme --minutes 12                  # all parts, as far as the time goes
    python -m benchmarks.gpu_programme --minutes 5 --only voc_92     # one part
    python -m benchmarks.gpu_programme --plan                        # the plan, and nothing else
    python -m benchmarks.gpu_programme --rehearse                    # every part on this machine, in small

Each part writes its results as it ends; what was finished is not run again, and trainings go on from their
last saved state. ``--archive FILE.tar.gz`` gathers records, results and logs after every part, for machines
that give back a few files only. A part whose tools are missing (TensorRT, say) is passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.trainer import tail
from benchmarks.common import RESULTS, ROOT, parser
from benchmarks.gpu_parts import PARTS, Part
from protoseg.files import write_text_whole, write_whole

GRACE_S = 20.0
"""What a part that is stopped gets to save its state."""


def run_commands(part: Part, args: argparse.Namespace, until: float) -> tuple[str, str]:
    """Run a part's commands until ``until`` (monotonic seconds).

    Returns:
        ``done``, ``failed`` or ``stopped``, and the reason.
    """
    log = args.out / f"{part.name}.log"
    for command in part.commands(args):
        with log.open("ab") as stream:
            stream.write(f"\n$ {shlex.join(command)}\n".encode())
            stream.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
        try:
            code = process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            end(process)
            return "stopped", "out of time"
        except BaseException:
            end(process)
            raise
        if code not in (0, 5):  # pytest: 5 when a filter leaves no test
            return "failed", f"exit code {code} of: {shlex.join(command)}\n{tail(log)}"
    return "done", ""


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a command save its state, then kill it with everything it started."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def gather(args: argparse.Namespace) -> None:
    """Records, results, logs and the state of the programme as one archive."""
    if args.archive is None:
        return

    def write(path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for folder, pattern in ((args.results, "**/*.json"), (args.out, "*.log"), (args.out, "*.json"),
                                    (args.out, "accuracy/*/*.log")):  # fmt: skip
                for file in sorted(folder.glob(pattern)):
                    if file.stat().st_mtime >= args.started or folder == args.out:
                        archive.add(file, f"{folder.name}/{file.relative_to(folder)}")

    write_whole(args.archive, write)


def plan_text(parts: Sequence[Part], states: dict[str, dict[str, object]], args: argparse.Namespace) -> str:
    """The plan as a table: expected minutes, when a part would begin, and why one will not."""
    lines, clock = [f"{'part':<12} {'minutes':>7}  {'from':>5}  what"], 0.0
    for part in parts:
        reason = part.lacking(args)
        if states.get(part.name, {}).get("state") == "done":
            when, note = "-", "finished"
        elif reason:
            when, note = "-", f"not here: {' '.join(reason.split())}"
        else:
            when, note = f"{clock:.1f}", part.title
            clock += part.minutes
        lines.append(f"{part.name:<12} {part.minutes:>7.1f}  {when:>5}  {note}")
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    command = parser(__doc__, prog="python -m benchmarks.gpu_programme")
    add = command.add_argument
    add("--minutes", type=float, default=12.0, help="time that there is (12)")
    add("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts, in the usual order")
    add("--plan", action="store_true", help="print the plan and stop")
    add("--rehearse", action="store_true", help="everything in small on the CPU, to see that it runs")
    add("--again", action="store_true", help="run finished parts again")
    add("--jobs", type=int, default=0, metavar="N",
        help="trainings side by side (one for each core, at most 16)")  # fmt: skip
    add("--out", type=Path, default=ROOT / "runs" / "gpu_programme", help="run folders, logs and state")
    add("--results", type=Path, default=RESULTS, help="where results and records go")
    add("--archive", type=Path, metavar="FILE.tar.gz", help="gather what came of it here, after every part")
    args = command.parse_args(argv)
    args.jobs = args.jobs or max(1, min(16, os.cpu_count() or 1))
    args.device = "cpu" if args.rehearse else "cuda"
    args.started = time.time()
    args.out = args.out.absolute()
    args.results = args.results.absolute()
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the programme; returns 1 when a part failed."""
    args = parse_arguments(argv)
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "programme.json"
    states = json.loads(state_file.read_text()) if state_file.is_file() and not args.again else {}
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    print(plan_text(parts, states, args), flush=True)
    if args.plan:
        return 0
    last = began + 60 * args.minutes

    def turn(part: Part, behind: Sequence[Part]) -> dict[str, object]:
        left = last - time.monotonic()
        if reason := part.lacking(args):
            return {"state": "not here", "reason": reason}
        if left < 60 * part.minutes / (4 if part.resumable else 2):
            return {"state": "no time", "reason": f"{left:.0f} s left"}
        # a study would take all the time that there is: the short parts behind it keep theirs
        kept = sum(60 * p.minutes for p in behind if not p.resumable and not p.lacking(args))
        start, room = time.monotonic(), left - (kept if part.resumable and kept < left / 2 else 0)
        state, reason = run_commands(part, args, start + room - GRACE_S)
        return {"state": state, "reason": reason, "seconds": round(time.monotonic() - start, 1)}

    # what was stopped goes on when everything else has had its turn
    for place, part in enumerate([*parts, *parts]):
        before = states.get(part.name, {}).get("state")
        if before == "done" or (place >= len(parts) and before != "stopped"):
            continue
        told = turn(part, parts[place + 1 :])
        if told["state"] != "no time" or before != "stopped":
            states[part.name] = told
        clock = (time.monotonic() - began) / 60
        print(f"[{clock:5.1f} min] {part.name}: {told['state']} {told['reason']}", flush=True)
        write_text_whole(state_file, json.dumps(states, indent=1) + "\n")
        gather(args)
    return 1 if any(item["state"] == "failed" for item in states.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
