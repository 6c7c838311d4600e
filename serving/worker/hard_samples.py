"""Keeps images whose labels the linear head doubts: the way from serving back to labelling."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

from protoseg.files import write_bytes_whole
from serving.settings import Settings

logger = logging.getLogger(__name__)


class HardSamples:
    """A folder of bounded size with images as they were sent, and what was predicted.

    Args:
        settings: ``keep_hard``, ``keep_hard_below`` and ``keep_hard_bytes``.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.keep_hard is not None
        self.folder = Path(settings.keep_hard).expanduser()
        self.below = settings.keep_hard_below
        # the folder itself is measured each time, because other workers fill it too
        self._limit = settings.keep_hard_bytes
        self._lock = threading.Lock()

    def _used(self) -> int:
        total = 0
        for file in self.folder.iterdir():
            try:
                total += file.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def keep(self, data: bytes, suffix: str, mask_png: bytes, record: dict[str, Any]) -> str:
        """Store one image with its predicted mask and a JSON record.

        Args:
            data: Image file as it was sent.
            suffix: File ending by its content, as ``jpeg``.
            mask_png: Predicted mask.
            record: Written as JSON.

        Returns:
            ``kept``, ``known`` (the same image is there), ``full`` or ``failed``.
        """
        name = hashlib.sha256(data).hexdigest()[:32]
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if (self.folder / f"{name}.json").exists():
                    return "known"
                text = json.dumps(record, indent=1).encode()
                if self._used() + len(data) + len(mask_png) + len(text) > self._limit:
                    return "full"
                # the record comes last: an image with a record is complete
                write_bytes_whole(self.folder / f"{name}.{suffix}", data)
                write_bytes_whole(self.folder / f"{name}.mask.png", mask_png)
                write_bytes_whole(self.folder / f"{name}.json", text)
            except OSError as error:
                logger.warning("PROTOSEG_KEEP_HARD %s: %s", self.folder, error)
                return "failed"
        return "kept"
