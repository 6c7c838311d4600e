"""Masks of very many images on a Ray cluster: ``protoseg predict MODEL IMAGES... -o OUT --ray ADDRESS``.

Images are files or folders that every machine sees, and tars or parquet files by path or URL. Masks are
written as tars of samples with a manifest:

* ``OUT/masks-000000.tar``: ``KEY.png`` (class ids, palette) and ``KEY.json`` (where the image is, shares of
  classes) for each image;
* ``OUT/masks-000000.json``: written last; images, failures, bytes and SHA-256 of that tar;
* ``OUT/manifest.json``: all of them, when everything is done.

Ray Data divides the work among the machines, holds it back where one is slow, and gives what a lost worker
had to another one. The same call goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protoseg.distributed.plan import (
    MANIFEST,
    Item,
    Plan,
    agree,
    find_items,
    keys_of,
    make_plan,
    read_done,
    write_manifest,
)
from protoseg.distributed.work import make_shard, open_model
from protoseg.errors import UserError, guarded

SHARD_SIZE = 256


class Worker:
    """A process of the cluster with its model.

    Args:
        model: As for ``protoseg.load``.
        head: Head that labels, or None.
        threads: CPU threads for one image, of a bundle.
        out: Folder of results.
    """

    def __init__(self, model: str, head: Any, threads: int, out: str) -> None:
        self.model, self.out = open_model(model, head, threads), Path(out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch; returns their numbers and counts."""
        images, failed = [], []
        for shard, packed in zip(batch["shard"], batch["work"], strict=True):
            # our own objects from our own driver, as all of Ray's messages are
            items, keys = pickle.loads(packed)
            told = make_shard(self.model, items, keys, self.out, int(shard))
            images.append(told["images"])
            failed.append(len(told["failed"]))
        return {"shard": batch["shard"], "images": images, "failed": failed}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.distributed",
        description="Segment very many images on a Ray cluster: tars of masks with a manifest. The same call "
        "goes on where it was stopped.",
        epilog='Needs pip install "protoseg[ray]", here and on the cluster. Paths are those of a disk that '
        "all machines share.",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="bundle, run folder (its bundle, or else its checkpoint), hf://user/name",
    )
    add("inputs", metavar="PATH", nargs="+", help="images and folders; tars and parquet files by "
        "path, URL or pattern (s3://b/train-{000..099}.tar)")  # fmt: skip
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add("--ray", metavar="ADDRESS", required=True, help="ray://host:10001, host:6379, auto, or local: a "
        "cluster of this machine alone, for this call")  # fmt: skip
    add("--head", choices=("linear", "prototype", "fused"), help="head that labels (default: a bundle's "
        "own; the best of a checkpoint)")  # fmt: skip
    add("--shard-size", type=int, default=SHARD_SIZE, metavar="N", help="images of a tar; what a lost worker "
        f"loses at most (default {SHARD_SIZE})")  # fmt: skip
    add("--workers", type=int, metavar="N", help="workers (default: as many as the cluster has room for)")
    add("--cpus", type=int, default=1, metavar="N", help="CPUs of a worker, and its threads (default 1)")
    add("--gpus", type=float, default=0.0, metavar="N", help="GPUs of a worker; 0.5: two workers share one "
        "(default 0)")  # fmt: skip
    return parser.parse_intermixed_args(argv)


def describe_model(reference: str, head: Any) -> dict[str, Any]:
    """What segments, to compare with an earlier call; opens the model, so that a fault shows here."""
    model = open_model(reference, head, 1)
    info = model.info
    return {"name": info.name, "version": info.version, "head": info.head,
            "classes": [item.name for item in info.classes]}  # fmt: skip


def spread(
    arguments: argparse.Namespace, plan: Plan, items: list[Item], keys: list[str], todo: list[int]
) -> None:
    """Let the cluster make the shards ``todo``.

    Raises:
        UserError: If the cluster cannot be reached or has no room.
    """
    # telling a company what runs here is not ours to do
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)

    try:
        address = None if arguments.ray == "local" else arguments.ray
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {arguments.ray} ({error}); start one with: ray start --head"
        ) from error
    try:
        free = ray.cluster_resources()
        room = int(free.get("CPU", 0) // arguments.cpus) if arguments.cpus else sys.maxsize
        if arguments.gpus:
            room = min(room, int(free.get("GPU", 0) / arguments.gpus))
        if room < 1:
            raise UserError(
                f"the cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs, a worker "
                f"wants {arguments.cpus} and {arguments.gpus:g}; lower --cpus or --gpus"
            )
        workers = min(room, len(todo), arguments.workers or room)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [
            {"shard": shard, "work": pickle.dumps((items[plan.part(shard)], keys[plan.part(shard)]))}
            for shard in todo
        ]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker, batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=arguments.cpus,
            num_gpus=arguments.gpus or None,
            fn_constructor_args=(
                arguments.model, arguments.head, max(1, arguments.cpus), str(arguments.output.resolve()),
            ),
        )  # fmt: skip
        pause = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(total=sum(len(keys[plan.part(s)]) for s in todo), desc="predict", unit="image",
                  mininterval=pause) as bar:  # fmt: skip
            for row in results.iter_rows():
                bar.update(row["images"] + row["failed"])
    finally:
        ray.shutdown()


def run(arguments: argparse.Namespace) -> int:
    """Plan, let the cluster work, and put the manifest together; returns the exit code.

    Raises:
        UserError, OSError: With a text for the user.
    """
    if find_spec("ray") is None:
        raise UserError('--ray needs Ray, here and on the cluster: pip install "protoseg[ray]"')
    if arguments.shard_size < 1:
        raise UserError(f"--shard-size must be at least 1, got {arguments.shard_size}")
    out: Path = arguments.output
    items = find_items(arguments.inputs, out)
    if not items:
        raise UserError("no image in what was given")
    keys = keys_of(items)
    plan = make_plan(items, keys, arguments.shard_size, describe_model(arguments.model, arguments.head))
    agree(plan, out)
    todo = [shard for shard in range(plan.num_shards) if read_done(out, shard) is None]
    if len(todo) < plan.num_shards:
        sys.stderr.write(
            f"note: {plan.num_shards - len(todo)} of {plan.num_shards} shards are there already\n"
        )
    if todo:
        spread(arguments, plan, items, keys, todo)
    manifest = write_manifest(plan, out)
    failures = [item for told in manifest["shards"] for item in told["failed"]]
    for item in failures:
        sys.stderr.write(f"skipped: {item['reason']}\n")
    done = f"{plan.images - len(failures)} of {plan.images} images"
    sys.stdout.write(f"{done} in {plan.num_shards} shards, {out / MANIFEST}\n")
    if failures:
        sys.stderr.write(f"error: {len(failures)} image(s) could not be read, see above\n")
    return 1 if failures else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
