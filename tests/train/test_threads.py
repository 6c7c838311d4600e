import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import quiet_environment

from protoseg.train.threads import cpu_threads, given_threads

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}


def launcher(
    tmp_path: Path, environ: bytes = b"HOME=/root\0", cmdline: bytes = b"accelerate\0launch\0"
) -> Path:
    (tmp_path / "environ").write_bytes(environ)
    (tmp_path / "cmdline").write_bytes(cmdline)
    return tmp_path


def test_what_the_user_asked_for_is_told_from_the_launchers_one(tmp_path: Path) -> None:
    assert given_threads({}, tmp_path) is None
    assert (
        given_threads({"OMP_NUM_THREADS": "1"}, tmp_path) == 1
    )  # no launcher: only the user can have set it
    assert given_threads({"OMP_NUM_THREADS": "3,2"}, tmp_path) == 3
    assert given_threads(LAUNCHED | {"OMP_NUM_THREADS": "4"}, tmp_path) == 4
    assert given_threads(LAUNCHED, launcher(tmp_path)) is None
    assert given_threads({"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}, launcher(tmp_path)) is None
    assert given_threads(LAUNCHED, launcher(tmp_path, b"A=1\0OMP_NUM_THREADS=1\0")) == 1
    flag = b"accelerate\0launch\0--num_cpu_threads_per_process=1\0"
    assert given_threads(LAUNCHED, launcher(tmp_path, cmdline=flag)) == 1
    assert given_threads(LAUNCHED, tmp_path / "no such process") is None


def test_a_setting_goes_first_and_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoseg.train.threads.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [cpu_threads(None, n) for n in (1, 3, 9)] == [8, 2, 1]
    assert cpu_threads(5, 2) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_threads(None, 1) == 3
    assert cpu_threads(5, 1) == 5


@pytest.mark.slow
def test_the_launcher_does_not_take_the_cores_away(tmp_path: Path) -> None:
    script = tmp_path / "threads.py"
    script.write_text(
        "import json, os; from protoseg.cores import usable_cores\n"
        "from protoseg.train.threads import cpu_threads\n"
        "print(json.dumps([os.environ['OMP_NUM_THREADS'], cpu_threads(None, 1), usable_cores()]))\n"
    )
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", str(script)]
    environment = quiet_environment()
    for chosen in (False, True):
        if not chosen:
            del environment["OMP_NUM_THREADS"]
        else:
            environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        variable, threads, cores = json.loads(done.stdout.splitlines()[-1])
        assert variable == "1"
        assert threads == (1 if chosen else cores)
