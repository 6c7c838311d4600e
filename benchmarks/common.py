"""What every result file carries: machine, versions, command, date; and how spread is given."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch", "torchvision", "accelerate", "timm", "segmentation-models-pytorch", "numpy", "pillow",
    "onnx", "onnxruntime", "onnxruntime-gpu", "bentoml",
)  # fmt: skip


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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and number of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def write_result(name: str, data: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``results/NAME.json`` whole, with machine, versions, command and date.

    Args:
        name: File name without suffix.
        data: The figures.
        folder: Where results go.

    Returns:
        The file.
    """
    module = Path(sys.argv[0])
    command = f"python -m benchmarks.{module.stem} {' '.join(sys.argv[1:])}".strip()
    record = {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        **data,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
