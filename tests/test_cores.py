import os
from pathlib import Path

import pytest

from protoseg.cores import usable_cores

UNIFIED, SPLIT = "proc/self/cgroup", "groups/cpu/x/cpu.cfs_"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 6),
        ({UNIFIED: "0::/\n", "groups/cpu.max": "max 100000\n"}, 6),
        ({UNIFIED: "0::/\n", "groups/cpu.max": "250000 100000\n"}, 3),
        ({UNIFIED: "0::/\n", "groups/cpu.max": "20000 100000\n"}, 1),
        ({UNIFIED: "0::/\n", "groups/cpu.max": "800000 100000\n"}, 6),
        # the tightest of the groups above counts
        ({UNIFIED: "0::/a/b\n", "groups/a/cpu.max": "200000 100000", "groups/a/b/cpu.max": "max 1"}, 2),
        (
            {UNIFIED: "5:cpuacct,cpu:/x\n3:memory:/x\n"}
            | {f"{SPLIT}quota_us": "400000\n", f"{SPLIT}period_us": "100000\n"},
            4,
        ),
        ({UNIFIED: "2:cpu:/x\n", f"{SPLIT}quota_us": "-1\n", f"{SPLIT}period_us": "100000\n"}, 6),
    ],
)
def test_no_more_cores_than_the_control_group_pays_for(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path / "proc", tmp_path / "groups") == cores
