"""Images through the service, written to a folder: ``python -m serving.client IMAGE... -o DIR``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from protoseg.data.names import IMAGE_SUFFIXES
from protoseg.errors import INTERRUPTED, UserError, guarded
from protoseg.files import write_bytes_whole
from serving.http_client import Client as Client
from serving.http_client import ClientError as ClientError

SUFFIXES = {
    "mask": ".png", "json": ".json", "rle": ".json", "polygons": ".json", "overlay": ".jpg",
    "confidence": ".png", "agreement": ".png", "novelty": ".png", "explain": ".json", "hf": ".json",
}  # fmt: skip
# arrays are no pictures that a service decodes
_IMAGES = frozenset({*IMAGE_SUFFIXES, ".gif"} - {".npy"})


def find_images(paths: Sequence[str]) -> list[Path]:
    """Image files among ``paths``, those of folders included.

    Raises:
        FileNotFoundError: If a path does not exist.
        UserError: If there is no image.
    """
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGES)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    if not found:
        raise UserError(f"no images in {', '.join(paths)}")
    return found


def _targets(images: Iterable[Path], folder: Path, suffix: str) -> dict[Path, Path]:
    targets: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for image in images:
        target = folder / f"{image.stem}{suffix}"
        if taken.setdefault(target, image) != image:
            raise UserError(f"{taken[target]} and {image} would both become {target}; rename one")
        targets[image] = target
    return targets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client", description="Send images to the service and write what it answers."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="address (default: %(default)s)")
    parser.add_argument("--output", default="mask", choices=list(SUFFIXES), help="what to ask for")
    parser.add_argument("--concurrency", type=int, default=2, metavar="N", help="requests at a time")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for an answer")
    parser.add_argument("--tile", action="store_true", help="compute large images in tiles")
    parser.add_argument(
        "--key-env", default="PROTOSEG_API_KEY", metavar="NAME",
        help="environment variable with the API key (default: %(default)s)",
    )  # fmt: skip
    return parser


def _run(args: argparse.Namespace, targets: dict[Path, Path]) -> list[str]:
    from tqdm import tqdm

    failures = []
    parameters = {"tile": "1"} if args.tile else {}
    key = os.environ.get(args.key_env)
    with (
        Client(args.url, api_key=key, timeout=args.timeout) as client,
        ThreadPoolExecutor(args.concurrency) as pool,
    ):

        def work(image: Path) -> None:
            write_bytes_whole(targets[image], client.segment(image, args.output, **parameters))

        futures = {pool.submit(work, image): image for image in targets}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="image", disable=None):
                try:
                    future.result()
                except (ClientError, OSError) as error:
                    failures.append(f"{futures[future]}: {error}")
                    if isinstance(error, ClientError) and error.code in ("unreachable", "unauthorized"):
                        break
        finally:
            # else leaving the pool, also by Ctrl-C, would first send everything that still waits
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def main(argv: list[str] | None = None) -> int:
    """Segment files through the service."""
    args = _parser().parse_args(argv)
    folder = Path(args.out)

    def send() -> int:
        if args.concurrency < 1:
            raise UserError(f"--concurrency must be at least 1, got {args.concurrency}")
        targets = _targets(find_images(args.images), folder, SUFFIXES[args.output])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            failures = _run(args, targets)
        except KeyboardInterrupt:
            done = sum(target.exists() for target in targets.values())
            sys.stderr.write(f"interrupted; {done} of {len(targets)} results are in {folder}\n")
            return INTERRUPTED
        for failure in failures:
            sys.stderr.write(f"error: {failure}\n")
        if not failures:
            sys.stdout.write(f"{len(targets)} results in {folder}\n")
        return 1 if failures else 0

    return guarded(send)


if __name__ == "__main__":
    sys.exit(main())
