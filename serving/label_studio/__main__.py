"""An ML backend for Label Studio: ``python -m serving.label_studio MODEL``.

A process beside the service: it fetches images from Label Studio with its token (the service fetches
nothing), asks the service or a bundle, and answers predictions as brush regions. With ``--train`` it starts a
command when Label Studio asks for a training. docs/labelling.md says how to connect it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import uvicorn

from protoseg.annotate.draft import Keep
from protoseg.api.result import ModelInfo, Result
from protoseg.errors import UserError, guarded
from serving.http_client import Client
from serving.label_studio.app import Backend, build_app, version_of
from serving.label_studio.fetch import LabelStudio
from serving.label_studio.trainer import Trainer
from serving.local import Bundle
from serving.remote import Served

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class FromService:
    """The model behind a running service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def info(self) -> ModelInfo:
        """As the service tells it now."""
        return Served.of(self._client.model()).info

    def segment(self, image: bytes) -> Result:
        """Ask the service."""
        return self._client(image)


class FromBundle:
    """A bundle in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _bundle(self) -> Bundle:
        inside = self._path / "bundle"
        return Bundle(inside if inside.is_dir() else self._path)

    def info(self) -> ModelInfo:
        """Of the bundle."""
        return self._bundle.info

    def segment(self, image: bytes) -> Result:
        """Run the bundle."""
        return self._bundle(image)


def main(argv: list[str] | None = None) -> int:
    """Answer Label Studio until Ctrl-C; returns the exit code."""
    args = _parser().parse_args(argv)
    return guarded(lambda: run(args, os.environ))


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Build the backend and serve it.

    Raises:
        UserError: If a setting cannot be used.
    """
    backend = make_backend(args, environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        told = version_of(backend.model.info())
    except UserError as error:
        if isinstance(backend.model, FromBundle):
            raise
        told = f"not there yet ({error})"
    training = f"training: {args.train}" if args.train else "no training command"
    sys.stdout.write(
        f"Label Studio backend at http://{args.host}:{args.port} for {args.label_studio}\n"
        f"model: {told}; {training} (Ctrl-C ends it)\n"
    )
    sys.stdout.flush()
    try:
        uvicorn.run(build_app(backend), host=args.host, port=args.port, log_level="warning", access_log=False)
    finally:
        backend.trainer.stop()
        backend.images.close()
    return 0


def make_backend(args: argparse.Namespace, environ: Mapping[str, str]) -> Backend:
    """The backend that a command line describes.

    Raises:
        UserError: If a setting cannot be used.
    """
    name, password = environ.get("BASIC_AUTH_USER", ""), environ.get("BASIC_AUTH_PASS", "")
    if bool(name) != bool(password):
        raise UserError("set both BASIC_AUTH_USER and BASIC_AUTH_PASS, or neither")
    command = shlex.split(args.train or "")
    if command and not name and args.host not in _LOOPBACK:
        raise UserError(
            f"--train with --host {args.host} lets everyone who reaches it start trainings; set "
            "BASIC_AUTH_USER and BASIC_AUTH_PASS (and both in Label Studio), or leave out --host"
        )
    Keep(min_pixels=args.min_pixels, min_confidence=args.min_confidence)
    if args.model.startswith(("http://", "https://")):
        key = environ.get("PROTOSEG_API_KEY")
        model: FromService | FromBundle = FromService(Client(args.model, api_key=key, timeout=args.timeout))
    else:
        model = FromBundle(Path(args.model))
    token = environ.get("LABEL_STUDIO_API_KEY", "")
    images = LabelStudio(args.label_studio, token, allowed=args.allow_host, timeout=args.timeout)
    return Backend(model, images, Trainer(command), args.skip, args.min_pixels, args.min_confidence,
                   (name, password) if name else None)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.label_studio",
        description="Answer Label Studio's requests for predictions from the service or a bundle, and start "
        "a training when it asks for one.",
        epilog="Environment: LABEL_STUDIO_API_KEY, an access token of Label Studio, with which it fetches "
        "images; PROTOSEG_API_KEY, a key of the service; BASIC_AUTH_USER and BASIC_AUTH_PASS, which it then "
        "asks for.",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="address of the service (http://127.0.0.1:3000), or a bundle or run folder",
    )
    default = os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080")
    add("--label-studio", metavar="URL", default=default,
        help="address of Label Studio (LABEL_STUDIO_URL, else http://localhost:8080)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to answer at (%(default)s)")
    add("--port", type=int, default=9090, help="port (%(default)s)")
    add("--allow-host", action="append", default=[], metavar="HOST", help="another host that images may "
        "be fetched from, without the token; may be repeated")  # fmt: skip
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds for an image, and for a prediction "
        "(%(default)s)")  # fmt: skip
    add("--skip", metavar="NAMES", help="classes that are not proposed, split by commas; '' for none "
        "(default: background)")  # fmt: skip
    add("--min-pixels", type=int, default=0, metavar="N", help="drop regions smaller than this (%(default)s)")
    add("--min-confidence", type=float, default=0.0, metavar="P", help="drop regions whose mean confidence "
        "is lower, 0 to 1 (%(default)s)")  # fmt: skip
    add("--train", metavar="COMMAND", help="run this when Label Studio asks for a training, one at a time, "
        "with LABEL_STUDIO_PROJECT in its environment (default: never)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
