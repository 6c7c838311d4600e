import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import PROJECT_ROOT, quiet_environment

from benchmarks import gpu_programme
from benchmarks.gpu_parts import Part
from benchmarks.gpu_programme import main


def part(name, code, minutes=0.01, lacking=""):
    return Part(name, name, minutes, lambda _: [[sys.executable, "-c", code]], lambda _: lacking)


@pytest.fixture
def programme(monkeypatch, tmp_path):
    """Run a programme of made parts; gives exit code and states."""

    def run(*parts, minutes=1.0, **flags):
        monkeypatch.setattr(gpu_programme, "PARTS", parts)
        arguments = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
        arguments += ["--minutes", str(minutes), *flags.get("more", [])]
        code = main(arguments)
        return code, json.loads((tmp_path / "out" / "programme.json").read_text())

    return run


def test_parts_run_in_order_and_a_failure_does_not_stop_the_others(programme, tmp_path, capsys):
    mark = tmp_path / "order"
    write = "import sys; open({!r}, 'a').write({!r})"
    code, states = programme(
        part("first", write.format(str(mark), "1")),
        part("broken", "import sys; sys.exit('no such device')"),
        part("absent", "", lacking="nothing installed"),
        part("last", write.format(str(mark), "2")),
    )
    assert code == 1
    assert mark.read_text() == "12"
    assert {name: item["state"] for name, item in states.items()} == {
        "first": "done", "broken": "failed", "absent": "not here", "last": "done",
    }  # fmt: skip
    assert "no such device" in states["broken"]["reason"]
    out = capsys.readouterr().out
    assert "not here: nothing installed" in out


def test_a_finished_part_is_not_run_again_and_a_failed_one_is(programme, tmp_path):
    count = tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x')"
    programme(part("one", code), part("two", f"{code}; raise SystemExit(1)"))
    programme(part("one", code), part("two", code))
    assert count.read_text() == "xxx"


def test_a_part_gets_no_more_than_the_time_that_is_left_and_may_save(programme, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_programme, "GRACE_S", 2.0)
    saved = tmp_path / "saved"
    code = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(saved)!r}, 'w').close(), sys.exit(0)))\n"
        "time.sleep(60)"
    )
    done, states = programme(part("long", code), part("later", "", minutes=1), minutes=0.07)
    assert done == 0
    assert states["long"]["state"] == "stopped"
    assert saved.exists()
    assert states["later"]["state"] == "no time"


def test_what_came_of_it_is_gathered(programme, tmp_path):
    result = tmp_path / "results" / "accuracy" / "voc" / "run.json"
    code = (
        f"import pathlib; p = pathlib.Path({str(result)!r}); p.parent.mkdir(parents=True); p.write_text('1')"
    )
    archive = tmp_path / "home.tar.gz"
    programme(part("one", code), more=["--archive", str(archive)])
    with tarfile.open(archive) as found:
        names = found.getnames()
    assert "results/accuracy/voc/run.json" in names
    assert {"out/one.log", "out/programme.json"} <= set(names)


def write_voc(folder):
    """Made images with the lists that the study names."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    # the names in the lists for settings are those of the data set
    listed = PROJECT_ROOT / "benchmarks" / "studies" / "lists" / "voc" / "92" / "seed3"
    names = [Path(line.split()[0]).stem for kind in ("labeled", "unlabeled")
             for line in (listed / f"{kind}.txt").read_text().splitlines()]  # fmt: skip
    image = Image.fromarray(rng.integers(0, 255, (64, 80, 3), np.uint8))
    mask = Image.fromarray(rng.integers(0, 21, (64, 80), np.uint8))
    for name in names:
        image.save(folder / f"images/{name}.jpg")
        mask.save(folder / f"masks/{name}.png")
    pairs = [f"images/{name}.jpg masks/{name}.png" for name in names]
    for count in ("46", "92", "183"):
        lists = folder / f"splits/{count}/seed0"
        lists.mkdir(parents=True)
        (lists / "labeled.txt").write_text("\n".join(pairs[:4]) + "\n")
        (lists / "unlabeled.txt").write_text("\n".join(f"images/{name}.jpg" for name in names[4:8]) + "\n")
    for name in ("train", "val", "val_fast", "val_third"):
        (folder / f"splits/{name}.txt").write_text("\n".join(pairs[:2]) + "\n")
    (folder / "classes.txt").write_text("\n".join(f"class{number}" for number in range(21)) + "\n")


@pytest.mark.slow
def test_the_whole_programme_is_rehearsed_on_a_cpu(tmp_path):
    write_voc(tmp_path / "data" / "voc")
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_programme",
        "--rehearse",
        "--minutes",
        "30",
        "--jobs",
        "2",
    ]
    command += ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    command += ["--archive", str(tmp_path / "home.tar.gz")]
    environment = quiet_environment() | {"PROTOSEG_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    environment.pop("REQUIRE_GPU", None)
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=os.environ | environment, text=True, capture_output=True, timeout=1500
    )  # fmt: skip
    states = json.loads((tmp_path / "out" / "programme.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("tests", "voc_92", "step", "runtime", "compile", "voc", "levers", "teacher"):
        assert states[name]["state"] == "done", (name, states[name])
    records = list((tmp_path / "results" / "accuracy" / "voc_gpu_rehearsal").glob("*.json"))
    assert len(records) == 4
    for study, count in (("voc_levers_gpu", 5), ("voc_teacher_gpu", 2)):
        records = list((tmp_path / "results" / "accuracy" / f"{study}_rehearsal").glob("*.json"))
        assert len(records) == count, records
