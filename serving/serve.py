"""``python -m serving.serve [BUNDLE]``: ``bentoml serve serving:svc`` with the settings of its command line.

The process becomes BentoML's, so that signals and the exit code are its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from protoseg.errors import UserError, guarded
from protoseg.manifest import MANIFEST_NAME
from serving.errors import BundleError
from serving.model.bundle import check_bundle, find_bundle
from serving.settings import PREFIX, Settings, load_settings

OPTIONS = ("workers", "device", "backend", "precision")
"""Settings that have an option of their own."""
_EVERYWHERE = ("0.0.0.0", "::")


def main(argv: list[str] | None = None) -> int:
    """Check that there is something to serve, say where, and serve it; returns the exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)

    def body() -> int:
        bundle, given = _divide(args.words)
        given |= {key: str(value) for key in OPTIONS if (value := getattr(args, key)) is not None}
        environ = environment(os.environ, bundle, given, args.config)
        settings = load_settings(environ)
        folder = find_bundle(settings.model)
        check_bundle(folder, settings)
        environ[f"{PREFIX}MODEL"] = str(folder)
        host = "localhost" if args.host in (*_EVERYWHERE, "127.0.0.1") else args.host
        address = f"http://{host}:{args.port}"
        key = "-H 'Authorization: Bearer KEY' " if settings.key_hashes() else ""
        everywhere = ", open to other machines" if args.host in _EVERYWHERE else ""
        sys.stdout.write(
            f"serving {folder} at {address}{everywhere} (a page to try it on; Ctrl-C ends it)\n"
            f"  curl {key}-F image=@photo.jpg {address}/v1/segment -o mask.png\n"
        )
        sys.stdout.flush()
        command = [sys.executable, "-m", "bentoml", "serve", "serving:svc"]
        return become([*command, "--host", args.host, "--port", str(args.port)], environ)

    return guarded(body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.serve",
        description="Answer HTTP requests from a bundle: bentoml serve serving:svc, with these settings in "
        "its environment. Works from any folder.",
        epilog="Settings are those of docs/serving.md, as  queue=64 max_pixels=50M ui=false; PROTOSEG_* "
        "variables count where the command line says nothing.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="BUNDLE | key=value",
        help="bundle or run folder (default: PROTOSEG_MODEL, else the newest runs/*/bundle), and settings",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address (%(default)s; 0.0.0.0: every one)")
    parser.add_argument("--port", type=int, default=3000, help="port (%(default)s)")
    parser.add_argument("--workers", type=int, help="worker processes (1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where ONNX Runtime runs (auto)")
    parser.add_argument(
        "--backend", choices=("auto", "onnx", "tensorrt", "openvino"), help="what runs the bundle (auto)"
    )
    parser.add_argument("--precision", help="which of the bundle's files (fp32, or any proven engine)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings (PROTOSEG_CONFIG)")
    return parser


def _divide(words: list[str]) -> tuple[str | None, dict[str, str]]:
    """The bundle, and settings by key.

    Raises:
        UserError: If there are two bundles, or a key is no setting.
    """
    bundles = [word for word in words if "=" not in word or Path(word).exists()]
    if bundles[1:]:
        raise UserError(f"one bundle is served, got {' and '.join(bundles)}; settings are key=value")
    given = dict(word.split("=", 1) for word in words if word not in bundles)
    wrong = [key for key in given if key not in Settings.model_fields]
    if wrong:
        raise UserError(f"{wrong[0]} is no setting of the service: {', '.join(Settings.model_fields)}")
    return (bundles[0] if bundles else None), given


def environment(
    environ: Mapping[str, str], bundle: str | None, given: Mapping[str, str], config: Path | None
) -> dict[str, str]:
    """The service's environment.

    Args:
        environ: That of this process.
        bundle: Bundle or run folder, from the working directory.
        given: Settings by key.
        config: File of settings.

    Raises:
        BundleError: If the folder holds no bundle; says how to make one.
    """
    changed = {**environ, **{f"{PREFIX}{key.upper()}": value for key, value in given.items()}}
    changed.setdefault("BENTOML_DO_NOT_TRACK", "True")
    if config is not None:
        changed[f"{PREFIX}CONFIG"] = str(config)
    if bundle is not None:
        folder = Path(bundle).expanduser()
        if not any((place / MANIFEST_NAME).is_file() for place in (folder, folder / "bundle")):
            what = "is no folder" if not folder.is_dir() else f"has no bundle (no {MANIFEST_NAME})"
            raise BundleError(f"{bundle} {what}; make one with: protoseg export RUN")
        changed[f"{PREFIX}MODEL"] = str(folder.absolute())
    return changed


def become(command: list[str], environ: Mapping[str, str]) -> int:
    """Run a command in place of this process; where that is not possible, as its child."""
    if os.name == "posix":
        os.execve(command[0], command, dict(environ))
    return subprocess.run(command, env=dict(environ), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
