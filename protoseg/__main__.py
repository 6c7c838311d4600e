"""``python -m protoseg`` is the command ``protoseg``."""

from __future__ import annotations

import sys

from protoseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
