"""Large sets: images a second from a folder, tar shards and parquet, memory and start by number of images.

    python -m benchmarks.large_sets

Everything is made below ``--work`` (mostly links to few files) and removed at the end. A start is
``open_run_data`` in a process of its own: lists, quick checks, class counts, as a training has them. Memory
is its peak, torch and the network's packages included: the rise over the smallest set is what images cost.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Answer, Block, Result, markdown_table, middle, parser, spread, write_result
from protoseg.config.load import parse_config
from protoseg.config.sections import Config

KINDS = ("folder", "tar", "parquet")
ANSWERS = {
    "large_sets": Answer(
        "images a second from folder, tar and parquet; memory and start by number of images",
        "python -m benchmarks.large_sets",
    )
}
SIZE = (375, 500)
LABELED = 8
GROUP = 100


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of smooth shapes and some noise, which compress as photographs do."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
        noise = rng.normal(0, 6, picture.shape)
        pixels = np.clip(picture + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=90)


def write_tar(path: Path, files: Sequence[Path], keys: Sequence[str]) -> None:
    """A tar of files, as WebDataset names them."""
    with tarfile.open(path, "w") as tar:
        for file, key in zip(files, keys, strict=True):
            data = file.read_bytes()
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, files: Sequence[Path]) -> None:
    """A parquet file of pictures, in row groups as ``datasets`` writes them."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    parquet.write_table(pa.table({"image": rows}), path, row_group_size=GROUP)


def make_labeled(work: Path) -> None:
    """A few labelled images and validation images beside every set."""
    from PIL import Image

    make_pictures(work / "labeled" / "images", LABELED, (64, 64))
    (work / "labeled" / "masks").mkdir()
    for number in range(LABELED):
        mask = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) // 128 % 2
        Image.fromarray(mask).save(work / "labeled" / "masks" / f"{number:06d}.png")
    lines = [f"labeled/images/{n:06d}.jpg labeled/masks/{n:06d}.png\n" for n in range(LABELED)]
    (work / "labeled.txt").write_text("".join(lines[:4]))
    (work / "val.txt").write_text("".join(lines[4:]))
    with tarfile.open(work / "pairs.tar", "w") as tar:
        for number in range(4):
            tar.add(work / "labeled/images" / f"{number:06d}.jpg", f"l{number}.jpg")
            tar.add(work / "labeled/masks" / f"{number:06d}.png", f"l{number}.mask.png")
    shutil.copy(work / "pairs.tar", work / "pairs-val.tar")


def configured(work: Path, unlabeled: str, *, shards: bool) -> Config:
    """A run on a set."""
    roles = ("pairs.tar", "pairs-val.tar") if shards else ("labeled.txt", "val.txt")
    return parse_config(
        {
            "data": {
                "kind": "files", "root": str(work), "labeled": roles[0], "val": roles[1],
                "unlabeled": unlabeled, "classes": ["a", "b"],
            },
            "model": {"encoder": "test_resnet", "architecture": "deeplabv3plus"},
        }
    )  # fmt: skip


def throughput(work: Path, count: int, rounds: int) -> dict[str, Any]:
    """Images a second of each kind: bytes alone, and decoded; random order, interleaved."""
    from protoseg.data.lists import read_entries
    from protoseg.data.sources import FileSource

    pictures = work / "pictures"
    make_pictures(pictures, count, SIZE)
    files = sorted(pictures.iterdir())
    for first in range(0, count, 250):
        some = files[first : first + 250]
        write_tar(work / f"speed-{first:06d}.tar", some, [file.stem for file in some])
        write_parquet(work / f"speed-{first:06d}.parquet", some)
    names = {"folder": "pictures", "tar": "speed-*.tar", "parquet": "speed-*.parquet"}
    sources = {}
    for kind, name in names.items():
        config = configured(work, name, shards=kind != "folder").data
        sources[kind] = FileSource(read_entries(config, "unlabeled").entries, 3, None, "")
    order = np.random.default_rng(1).permutation(count).tolist()
    found: dict[str, dict[str, list[float]]] = {
        what: {kind: [] for kind in KINDS} for what in ("read", "random order", "in order")
    }
    for number in range(rounds + 1):
        for kind, source in sources.items():
            for what, indices in (("read", order), ("random order", order), ("in order", range(count))):
                began = time.perf_counter()
                for index in indices:
                    if what == "read":
                        source.entries[index].image.read_bytes()
                    else:
                        source.image(index)
                if number:  # the first round fills the page cache
                    found[what][kind].append(count / (time.perf_counter() - began))
    ratios = {
        what: {
            kind: spread([a / b for a, b in zip(rates[kind], rates["folder"], strict=True)]) for kind in KINDS
        }
        for what, rates in found.items()
    }
    return {
        "images": count, "row_group": GROUP,
        "kilobytes": round(statistics.mean(file.stat().st_size for file in files) / 1000, 1),
        "images_per_s": {
            what: {kind: spread(v) for kind, v in rates.items()} for what, rates in found.items()
        },
        "ratio_to_folder": ratios,
    }  # fmt: skip


def make_set(work: Path, kind: str, count: int) -> str:
    """A set of ``count`` unlabelled images by links to 1,000 files; what ``data.unlabeled`` is then."""
    thousand = [work / "thousand" / f"{n:06d}.jpg" for n in range(1000)]
    if kind == "list":
        links = work / "links"
        links.mkdir(exist_ok=True)
        for number in range(count // 1000):
            if not (links / f"{number:04d}").exists():
                (links / f"{number:04d}").symlink_to(work / "thousand", target_is_directory=True)
        lines = (f"links/{n:04d}/{f.name}\n" for n in range(count // 1000) for f in thousand)
        (work / f"list-{count}.txt").write_text("".join(lines))
        return f"list-{count}.txt"
    if kind == "folder":
        for number in range(count // 1000):
            (work / f"many-{count}" / f"{number:04d}").mkdir(parents=True)
            for file in thousand:
                os.link(file, work / f"many-{count}" / f"{number:04d}" / f"{number:04d}-{file.name}")
        return f"many-{count}"
    for number in range(count // 1000):
        place = work / f"many-{count}-{number:04d}.tar"
        # each is a shard of its own, with its own table
        os.link(work / "thousand.tar", place)
    return f"many-{count}-*.tar"


def start(work: Path, kind: str, count: int, *, by_line: bool = False) -> dict[str, float]:
    """Seconds and peak memory of a training's start, in a process of its own."""
    unlabeled = make_set(work, kind, count) if not by_line else f"list-{count}.txt"
    command = [sys.executable, "-m", "benchmarks.large_sets", "--child", str(work), unlabeled]
    command += ["--by-line"] if by_line else []
    environment = {**os.environ, "PROTOSEG_CACHE": str(work / "cache")}
    found = {}
    # tables of shards are made once: the second start finds them
    for name in ("first", "then") if kind == "tar" else ("then",):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr)
        line = json.loads(done.stdout.splitlines()[-1])
        found[f"{name}_s"] = line["seconds"]
        found["peak_mib"] = line["peak_mib"]
    return found


def child(work: Path, unlabeled: str, by_line: bool) -> None:
    """One start; prints its figures."""
    from protoseg.data import lists
    from protoseg.train.data import open_run_data

    if by_line:
        lists.LONG = 10**12
    config = configured(work, unlabeled, shards=unlabeled.endswith(".tar"))
    began = time.perf_counter()
    data = open_run_data(config)
    seconds = time.perf_counter() - began
    assert data.unlabeled is not None
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(data.unlabeled), 200).tolist():
        data.unlabeled.image(index)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"seconds": round(seconds, 2), "peak_mib": round(peak, 1), "images": len(data.unlabeled)})
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.large_sets")
    command.add_argument("--images", type=int, default=1000, help="for images a second (%(default)s)")
    command.add_argument("--rounds", type=int, default=5, help="for images a second (%(default)s)")
    command.add_argument(
        "--largest", type=int, default=1_000_000, help="images of the largest set (%(default)s)"
    )
    command.add_argument("--work", type=Path, help="folder for the sets (default: a temporary one)")
    command.add_argument("--child", nargs=2, help="work and set: used by itself")
    command.add_argument("--by-line", action="store_true", help="used by itself")
    arguments = command.parse_args(argv)
    if arguments.child:
        child(Path(arguments.child[0]), arguments.child[1], arguments.by_line)
        return 0
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    os.environ["PROTOSEG_CACHE"] = str(work / "cache")
    try:
        make_labeled(work)
        speed = throughput(work, arguments.images, arguments.rounds)
        make_pictures(work / "thousand", 1000, (48, 48))
        files = sorted((work / "thousand").iterdir())
        write_tar(work / "thousand.tar", files, [file.stem for file in files])
        sizes = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= arguments.largest]
        starts: dict[str, dict[str, dict[str, float]]] = {}
        for kind in ("list", "folder", "tar"):
            for size in sizes:
                starts.setdefault(kind, {})[str(size)] = start(work, kind, size)
                print(kind, size, starts[kind][str(size)], flush=True)
        # every line looked up, as before: a tenth of the largest list is enough to see it
        some = sizes[-2] if sizes[1:] else sizes[-1]
        by_line = {str(some): start(work, "list", some, by_line=True)}
        print("list, line by line", by_line)
        write_result("large_sets", {"speed": speed, "starts": {**starts, "list, line by line": by_line}})
    finally:
        shutil.rmtree(work)
    return 0


def table(result: Result) -> str:
    """Speed by kind, and starts by number of images."""
    speed = result["speed"]

    def cell(what: str, kind: str) -> str:
        text = middle(speed["images_per_s"][what][kind])
        return text if kind == "folder" else f"{text}; {middle(speed['ratio_to_folder'][what][kind], 2)}"

    rows = [
        [what if what == "read" else f"decoded, {what}", *(cell(what, kind) for kind in KINDS)]
        for what in speed["images_per_s"]
    ]
    head = ["images a second; ratio to folder", *KINDS]
    text = (
        f"{speed['images']} JPEGs of {SIZE[1]}x{SIZE[0]} ({speed['kilobytes']:g} kB), one process, files in "
        f"memory, row groups of {speed['row_group']} images; median and range:\n\n"
        f"{markdown_table(head, rows)}\n\n"
        "Start of a training, and its peak memory in MiB:\n\n"
    )
    starts = result["starts"]
    sizes = list(starts["list"])
    lines = []
    for kind, found in starts.items():
        cells = []
        for size in sizes:
            entry = found.get(size)
            first = f" (first {entry['first_s']:.1f} s)" if entry and "first_s" in entry else ""
            cells.append(f"{entry['then_s']:.1f} s{first}, {entry['peak_mib']:,.0f}" if entry else "")
        lines.append([kind, *cells])
    return text + markdown_table(["unlabelled images", *(f"{int(size):,}" for size in sizes)], lines)


BLOCKS = {"large_sets": Block(table, ("large_sets",), ("numpy", "pillow"))}


if __name__ == "__main__":
    sys.exit(main())
