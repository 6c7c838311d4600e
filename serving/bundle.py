"""The former name of ``python -m serving.check``, which goes on working."""

from __future__ import annotations

import sys

from serving.check import main

if __name__ == "__main__":
    sys.exit(main())
