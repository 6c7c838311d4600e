"""Launcher files, the SLURM script and the Kubernetes job, as far as one machine without a GPU can tell."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import PROJECT_ROOT, TINY, quiet_environment

from protoseg.config.load import parse_config

ACCELERATE = sorted((PROJECT_ROOT / "configs" / "accelerate").glob("*.yaml"))
SBATCH = PROJECT_ROOT / "deploy" / "slurm" / "train.sbatch"
BIN = Path(sys.executable).parent


def launched(path):
    """What ``accelerate launch --config_file`` makes of a file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    return _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "-m", "protoseg.train"])
    )[0]


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda p: p.name)
def test_accelerate_reads_the_launcher_files(path):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(path))
    assert found.num_processes % found.num_machines == 0
    assert f"configs/accelerate/{path.name}" in path.read_text(), "the head shows how the file is used"
    assert launched(path).multi_gpu == (found.num_processes > 1), "the launcher for one or several processes"
    assert f"`configs/accelerate/{path.name}`" in (PROJECT_ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize(
    ("name", "processes", "machines", "precision"),
    [
        ("cpu_1", 1, 1, "no"),
        ("cpu_2", 2, 1, "no"),
        ("gpu_1_bf16", 1, 1, "bf16"),
        ("gpu_8", 8, 1, "bf16"),
        ("gpu_2x8", 16, 2, "bf16"),
    ],
)
def test_launcher_files_start_what_their_names_say(name, processes, machines, precision):
    found = launched(PROJECT_ROOT / "configs" / "accelerate" / f"{name}.yaml")
    assert (found.num_processes, found.num_machines, found.mixed_precision) == (
        processes,
        machines,
        precision,
    )


def shell_commands(script):
    return subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)


def test_the_slurm_script_is_valid_and_asks_for_time_to_save():
    assert shell_commands(SBATCH).returncode == 0
    text = SBATCH.read_text()
    notice = int(re.search(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.M)[1])
    patience = int(re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", text)[1])
    assert notice > patience > 30
    assert "#SBATCH --requeue" in text
    for config in re.findall(r"configs/[\w/.]+\.yaml", text):
        assert (PROJECT_ROOT / config).is_file()


def job_documents():
    text = (PROJECT_ROOT / "deploy" / "kubernetes" / "train.yaml").read_text()
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


def test_the_kubernetes_job_outlives_an_eviction():
    job = job_documents()["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    assert "--resume" in arguments
    code = int(arguments[arguments.index("--stopped-code") + 1])
    (rule,) = [r for r in job["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [code]}
    assert job["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert pod["restartPolicy"] == "Never", "a failure policy needs it"
    (patience,) = [e["value"] for e in container["env"] if e["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert pod["terminationGracePeriodSeconds"] > int(patience) > 30


def test_the_kubernetes_job_names_files_and_settings_that_exist():
    documents = job_documents()
    parse_config(yaml.safe_load(documents["ConfigMap"]["data"]["train.yaml"]))
    pod = documents["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    launcher = container["command"]
    file = PROJECT_ROOT / launcher[launcher.index("--config_file") + 1]
    assert launched(file).num_processes == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_training_image_copies_what_exists():
    dockerfile = (PROJECT_ROOT / "deploy" / "Dockerfile.train").read_text()
    allowed = (PROJECT_ROOT / "deploy" / "Dockerfile.train.dockerignore").read_text().splitlines()
    copied = " ".join(re.findall(r"^COPY (.*) /app\S*$", dockerfile, re.M)).split()
    assert {"protoseg", "configs", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (PROJECT_ROOT / source).exists()
        assert f"!{source}" in allowed
    assert re.findall(r"^USER (.*)$", dockerfile, re.M) == ["10001:10001"]


@pytest.fixture
def config_file(tmp_path):
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs")}
    raw["train"] |= {"max_steps": 8, "eval_every": 2000, "save_every": 2000}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def environment(**more):
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    return quiet_environment() | {"PATH": path, "ACCELERATE_USE_CPU": "true"} | more


@pytest.fixture
def start():
    """Start a command; whatever is left of it at the end of the test is killed."""
    started = []

    def run(command, env):
        process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop_in_the_middle(process, run, seconds=600):
    """SIGTERM once the first steps are logged; returns what the process printed."""
    end = time.monotonic() + seconds
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the training did not start"
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=200)[0]


def states(run):
    return sorted(int(p.name.removeprefix("step_")) for p in (run / "state").glob("step_*"))


@pytest.mark.slow
def test_two_processes_of_a_launcher_file_stop_and_go_on(config_file, tmp_path, start):
    run = tmp_path / "runs" / "tiny"
    file = PROJECT_ROOT / "configs" / "accelerate" / "cpu_2.yaml"
    command = ["accelerate", "launch", "--config_file", str(file), "-m", "protoseg.train", "--resume",
               "--config", str(config_file)]  # fmt: skip
    process = start([*command, "train.max_steps=5000"], environment())
    out = stop_in_the_middle(process, run)
    assert "device: cpu:0 x 2" in out
    assert "steps of 4 + 4 images" in out, "batch_size is counted for each process"
    assert process.returncode != 0, "a job manager must not take a stopped run for a finished one"
    (stopped,) = states(run)
    done = subprocess.run(
        [*command, f"train.max_steps={stopped + 2}"],
        cwd=PROJECT_ROOT, env=environment(), text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert (run / "checkpoint" / "model.safetensors").is_file()


@pytest.mark.slow
def test_several_processes_that_would_each_train_alone_are_refused(config_file, tmp_path):
    command = [
        "torchrun",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "protoseg.train",
        "--config",
        config_file,
    ]
    env = environment(CUDA_VISIBLE_DEVICES="")
    del env["ACCELERATE_USE_CPU"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=env, text=True, capture_output=True, timeout=600)
    assert done.returncode != 0
    assert done.stderr.count("error: 2 processes were started, but each would train alone") == 1
    assert "ACCELERATE_USE_CPU=true" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_code_asked_for(config_file, tmp_path, start):
    """The command of a one-GPU pod: SIGTERM, exit code 75, the same command again, exit code 0."""
    run = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-m", "protoseg.train", "train.batch_size=2", "--resume",
               "--stopped-code", "75", "--config", str(config_file)]  # fmt: skip
    process = start([*command, "train.max_steps=5000"], environment())
    stop_in_the_middle(process, run)
    assert process.returncode == 75
    (stopped,) = states(run)
    done = subprocess.run(
        [*command, f"train.max_steps={stopped + 1}"],
        cwd=PROJECT_ROOT, env=environment(), text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for SLURM's commands: ``srun`` starts two tasks here, ``scontrol`` notes what it is told."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "srun").write_text(
        '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\npids=()\n'
        'for id in 0 1; do SLURM_NODEID=$id "$@" & pids+=($!); done\n'
        "trap 'kill -TERM \"${pids[@]}\"' TERM\ncode=0\n"
        'for pid in "${pids[@]}"; do wait "$pid" || code=$?; done\n'
        "# a trap ends a wait; the tasks are waited for once more\n"
        'for pid in "${pids[@]}"; do wait "$pid" || code=$?; done\nexit "$code"\n'
    )
    (folder / "scontrol").write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "{folder}/calls"; fi\n'
    )
    for name in ("srun", "scontrol"):
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_nodes_and_requeues_itself(config_file, tmp_path, cluster, start):
    run = tmp_path / "runs" / "tiny"
    env = environment(
        VENV=str(BIN.parent),
        SLURM_JOB_ID="4711", SLURM_NNODES="2", SLURM_JOB_NODELIST="node[1-2]", PROCESSES_PER_NODE="1",
    )  # fmt: skip
    env["PATH"] = os.pathsep.join([str(cluster), env["PATH"]])
    command = ["bash", str(SBATCH), str(config_file), "train.mixed_precision=no"]
    process = start([*command, "train.max_steps=5000"], env)
    out = stop_in_the_middle(process, run)
    assert "device: cpu:0 x 2" in out
    assert process.returncode == 0, out
    assert (cluster / "calls").read_text() == "requeue 4711\n"
    (stopped,) = states(run)
    done = subprocess.run(
        [*command, f"train.max_steps={stopped + 2}"],
        cwd=PROJECT_ROOT, env=env, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert (cluster / "calls").read_text() == "requeue 4711\n", "a finished run is not queued again"
