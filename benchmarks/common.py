"""What all benchmarks share: result files with machine and versions, spread, and the figures of tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.runners.ort import installed
from protoseg.files import PROJECT_ROOT as ROOT
from protoseg.files import write_text_whole

RESULTS = ROOT / "benchmarks" / "results"
ASSETS = ROOT / "docs" / "assets"
PACKAGES = (
    "torch", "torchvision", "accelerate", "timm", "segmentation-models-pytorch", "numpy", "pillow",
    "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "bentoml",
)  # fmt: skip
# packages that a table names, by what shapes its figures
TRAINING = ("torch", "timm", "segmentation-models-pytorch", "accelerate")
EXPORT = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime")
SERVING = ("bentoml", "onnxruntime-gpu", "onnxruntime")

Result = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A result file, for the index."""

    question: str
    """What it answers."""
    command: str
    """Makes it."""
    in_parts: bool = False
    """The file keeps the command of its last part; the index shows ``command``."""


@dataclass(frozen=True)
class Block:
    """A table of the documents, between ``<!-- results:NAME -->`` and ``<!-- /results -->``."""

    make: Callable[..., str]
    """Result files -> Markdown; links are relative to the project's root."""
    results: tuple[str, ...]
    """Result files it needs, without suffix, in the order of the arguments."""
    packages: tuple[str, ...]
    """Packages whose versions shape the figures."""


def parser(text: str | None, **options: Any) -> argparse.ArgumentParser:
    """A command line whose help is a module's docstring as it stands."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPUs with their driver where there are any, system, load at the time."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        **({"gpu": found} if (found := gpus()) else {}),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def gpus() -> str | None:
    """Names of the NVIDIA GPUs and the driver's version, or None."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    done = subprocess.run(
        [command, "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return ", driver ".join("; ".join(lines).split(", ")) if done.returncode == 0 and lines else None


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    return installed(*PACKAGES)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and number of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def signed(value: float) -> str:
    """A change with its sign, without a negative zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


def middle(figure: dict[str, float], digits: int = 0) -> str:
    """Median with its range."""
    low, high = figure["min"], figure["max"]
    return f"{figure['median']:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def write_result(name: str, data: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``results/NAME.json`` whole, with machine, versions, command and date.

    Args:
        name: File name without suffix.
        data: The figures.
        folder: Where results go.

    Returns:
        The file.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = (spec.name if spec else sys.argv[0]).removesuffix(".__main__")
    command = f"python -m {module} {' '.join(sys.argv[1:])}".strip()
    record = {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        **data,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_text_whole(path, json.dumps(record, indent=2) + "\n")
    return path
