"""Trains what a study lacks, several runs side by side, beside other runners, and survives being stopped."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from benchmarks.accuracy.records import Clock, Places, Record, collect, finished, folder_hash, read_record
from benchmarks.accuracy.runs import Run, with_starts
from benchmarks.accuracy.settings import changed_settings
from benchmarks.accuracy.study import START, Study
from benchmarks.accuracy.trainer import last_step, measure_final, short, tail, trainer_command
from benchmarks.common import ROOT
from protoseg.files import write_text_whole

LOOK_EVERY = 0.5
STATUS_EVERY = 300.0
STATE_DIR = "state"


@dataclass
class Active:
    """A training in progress."""

    run: Run
    process: Any
    lock: IO[bytes]
    clock: Clock
    command: str
    told: bool = False
    """It was asked to stop."""


@dataclass
class Runner:
    """Trains the runs of a study that have no record.

    Attributes:
        study: The study.
        places: Where its files are.
        jobs: Trainings side by side.
        redo: Train again where a record has other settings.
    """

    study: Study
    places: Places
    jobs: int = 1
    redo: bool = False
    planned: list[Run] = field(default_factory=list)
    active: list[Active] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    stops: int = 0
    done: int = 0
    images_done: int = 0
    seconds_done: float = 0.0

    def wanted(self, runs: list[Run]) -> list[Run]:
        """Runs to train; reports records that were made with other settings."""
        wanted = []
        for run in runs:
            record = read_record(self.places.record(run.name))
            if record is None:
                wanted.append(run)
            elif record.config_hash == run.hash:
                self._learn(record)
            else:
                say(f"{run.name}: its record was made with other settings: {difference(record, run)}")
                if self.redo:
                    wanted.append(run)
                else:
                    say(f"{run.name}: kept as it is; --redo trains it again")
        # weights that others start from or learn from are needed even where their record came from elsewhere
        chains = [one for run in wanted for need in run.needs for one in (*need.needs, need)]
        needed = {run.name for run in chains if not self._ready(run)}
        kept = {run.name for run in wanted}
        return [run for run in with_starts(runs) if run.name in kept | needed]

    def _ready(self, run: Run) -> bool:
        """Whether the folder of a first stage or a teacher can be used."""
        return finished(run, self.places.runs / run.name)

    def train(self, runs: list[Run]) -> int:
        """Train ``runs``; returns the exit code.

        The first SIGINT or SIGTERM lets the trainers save their state, the second SIGINT kills them.
        """
        self.places.runs.mkdir(parents=True, exist_ok=True)
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        self.planned, pending, told = runs, list(runs), time.monotonic()
        try:
            while self.active or (pending and not self.stops):
                while len(self.active) < self.jobs and not self.stops:
                    started = self._start_next(pending)
                    if started is None:
                        break
                    pending.remove(started)
                if not self.active:
                    break  # what is left is trained by other runners
                time.sleep(LOOK_EVERY)
                if self.stops:
                    self._tell()
                for item in [item for item in self.active if item.process.poll() is not None]:
                    self.active.remove(item)
                    self._finish(item)
                if time.monotonic() - told > STATUS_EVERY:
                    told = time.monotonic()
                    self._status(len(pending))
        finally:
            for item in self.active:
                item.process.kill()
                item.process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._summary(pending)

    def _start_next(self, pending: list[Run]) -> Run | None:
        """Start the first run that nobody holds, or write its record if its folder is complete."""
        for run in pending:
            if not all(self._ready(need) for need in run.needs):
                continue
            lock = claim(self.places.runs / f"{run.name}.lock")
            if lock is None:
                continue
            record = read_record(self.places.record(run.name))
            known = record is not None and record.config_hash == run.hash
            for_others = run.method.name == START or run.name in {
                one.name for other in self.planned for one in other.needs
            }
            if record is not None and known and (not for_others or self._ready(run)):
                # another runner was faster
                lock.close()
                self.done += 1
                self._learn(record)
            else:
                self._start(run, lock)
            return run
        return None

    def _start(self, run: Run, lock: IO[bytes]) -> None:
        folder, log = self.places.runs / run.name, self.places.log(run.name)
        known = folder_hash(folder)
        # without --resume the trainer moves a folder of other settings aside
        command = trainer_command(self.study, run, self.places.runs, resume=known in (None, run.hash))
        clock = Clock(self.places.runs / f"{run.name}.clock.json", log)
        item = Active(run, None, lock, clock, shlex.join(command))
        if finished(run, folder):  # the runner was stopped between training and record
            clock.settle()
            self._write_record(item)
            lock.close()
            return
        clock.begin(time.time(), afresh=known != run.hash)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("ab") as stream:
            stream.write(f"\n$ {item.command}\n".encode())
            stream.flush()
            item.process = subprocess.Popen(
                [sys.executable, *command[1:]],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                # Ctrl-C reaches the runner only, which passes it on; the trainer holds the lock even
                # when the runner is killed
                start_new_session=True, pass_fds=(lock.fileno(),),
            )  # fmt: skip
        self.active.append(item)
        say(f"{run.name}: started ({run.steps} steps, {run.cost.total} encoder images), log {short(log)}")

    def _finish(self, item: Active) -> None:
        run, log = item.run, self.places.log(item.run.name)
        item.clock.end(time.time())
        code = item.process.returncode
        if code != 0 and not (item.told and code == -signal.SIGTERM):
            self.failed.append(run.name)
            say(f"{run.name}: failed with exit code {code}, see {short(log)}; its last lines:\n{tail(log)}")
        elif code != 0 or not finished(run, self.places.runs / run.name):
            self.interrupted.append(run.name)
            say(f"{run.name}: stopped; the same command goes on from its last saved state")
        else:
            self._write_record(item)
        item.lock.close()

    def _write_record(self, item: Active) -> None:
        run, folder = item.run, self.places.runs / item.run.name
        val = self.study.final_val if run.method.name != START else None
        if val is not None and (code := measure_final(folder, val, self.places.log(run.name))) != 0:
            self.failed.append(run.name)
            say(f"{run.name}: measuring it on {val} failed with exit code {code}; the same command goes on")
            return
        record = collect(self.study, run, folder, command=item.command, clock=item.clock, jobs=self.jobs)
        path = self.places.record(run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, record.model_dump_json(indent=1) + "\n")
        shutil.rmtree(folder / STATE_DIR, ignore_errors=True)
        self.done += 1
        self._learn(record)
        figures = "  ".join(f"{head} {100 * value:.2f}" for head, value in record.miou.items())
        images = sum(r.cost.total for r in self.planned if not self.places.record(r.name).exists())
        seconds = self.seconds_for(images)
        left = "" if seconds is None or not images else f", about {seconds / 3600:.1f} h"
        say(
            f"[{self.done}/{len(self.planned)}] {run.name}: {figures} ({record.wall_seconds:.0f} s); "
            f"{len(self.planned) - self.done} remain{left}"
        )

    def _learn(self, record: Record) -> None:
        self.images_done += record.student_encoder_images + record.teacher_encoder_images
        self.seconds_done += record.wall_seconds

    def seconds_for(self, images: int) -> float | None:
        """Expected seconds of trainings that cost ``images``; None before the first record."""
        return images * self.seconds_done / self.images_done / self.jobs if self.images_done else None

    def _status(self, pending: int) -> None:
        texts = [f"{item.run.name} {last_step(self.places.runs / item.run.name)}/{item.run.steps}"
                 for item in self.active]  # fmt: skip
        say(f"in progress: {', '.join(texts)}; {pending} to start")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1
        if self.stops == 1:
            sys.stderr.write("\nstopping: trainings save their state (Ctrl-C again: stop at once)\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def _tell(self) -> None:
        for item in self.active:
            if not item.told:
                item.told = True
                item.process.terminate()

    def _summary(self, pending: list[Run]) -> int:
        if self.failed:
            say(f"{len(self.failed)} failed: {', '.join(self.failed)}")
        if self.stops:
            say(f"stopped; {len(pending)} not started. The same command goes on")
            return 130
        stuck = [run for run in pending if {one.name for one in run.needs} & set(self.failed)]
        for run in stuck:
            lost = ", ".join(one.name for one in run.needs if one.name in self.failed)
            say(f"{run.name}: not trained, {lost} failed")
        pending = [run for run in pending if run not in stuck]
        if pending:
            say(f"{len(pending)} are being trained by another runner: {', '.join(r.name for r in pending)}")
        return 1 if self.failed or self.interrupted else 0


def say(text: str) -> None:
    """Print a line at once, into files too."""
    print(text, flush=True)


def claim(path: Path) -> IO[bytes] | None:
    """Hold a lock file, or None when another runner (or its trainer) holds it. It ends with its holders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def difference(record: Record, run: Run) -> str:
    """Settings in which a record and a run differ, in words."""
    now: dict[str, Any] = {k: v for k, v in changed_settings(run.config).items() if not k.startswith("run.")}
    keys = [k for k in sorted({*now, *record.settings}) if now.get(k) != record.settings.get(k)]
    texts = [f"{k} {record.settings.get(k, 'default')} there, {now.get(k, 'default')} here" for k in keys]
    return "; ".join(texts)
