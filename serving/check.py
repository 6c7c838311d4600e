"""``python -m serving.check [BUNDLE]`` makes the check of a bundle that the service makes at its start."""

from __future__ import annotations

import argparse
import sys

from protoseg.errors import guarded
from serving.model.bundle import find_bundle
from serving.model.open import open_model
from serving.settings import load_settings


def main(argv: list[str] | None = None) -> int:
    """Check a bundle; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.check",
        description="Check a bundle as the service does at its start: schema, hashes, parity, and a "
        "run of its samples. Settings come from PROTOSEG_* variables.",
    )
    parser.add_argument("bundle", nargs="?", help="bundle folder (default: as the service finds it)")
    args = parser.parse_args(argv)

    def check() -> int:
        settings = load_settings()
        model = open_model(find_bundle(args.bundle or settings.model), settings)
        model.close()
        sys.stdout.write(
            f"{model.bundle.folder}: {model.bundle.artifact.name} runs on {model.runtime}; "
            f"samples agree to {model.equal_labels:.4%}\n"
        )
        return 0

    return guarded(check)


if __name__ == "__main__":
    sys.exit(main())
