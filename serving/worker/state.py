"""What a worker process knows: its model, its threads, whether it drains; and how it reloads."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from protoseg.errors import UserError
from protoseg.files import write_text_whole
from serving.errors import RequestState, ServingError
from serving.model.bundle import find_bundle
from serving.model.model import Model
from serving.model.open import open_model
from serving.pixels.decode import ImageLimits
from serving.settings import Settings
from serving.worker.hard_samples import HardSamples
from serving.worker.metrics import metrics

T = TypeVar("T")
logger = logging.getLogger(__name__)

# which bundle the workers of one server serve: set by the parent, then by the last good reload
PINNED_BUNDLE = "_PROTOSEG_BUNDLE"
_RELOADED = "protoseg_bundle.txt"


class ServingState:
    """State of one worker. ``load`` must come before requests.

    Args:
        settings: Settings of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = ImageLimits(settings.max_pixels, settings.max_side, settings.formats)
        self.keeper = HardSamples(settings) if settings.keep_hard else None
        self.draining = False
        self.mask_requests = itertools.count()
        self.refused: str | None = None
        self._model: Model | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._reloading = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._model is not None and not self.draining

    @property
    def threads(self) -> int:
        """Requests that are computed at a time."""
        return self._model.pool_threads if self._model is not None else 1

    @property
    def model(self) -> Model:
        """The model that serves now; use it as a context manager while computing.

        Raises:
            ServingError: 503 when there is none.
        """
        if self._model is None:
            raise ServingError(503, "not_ready", "no model is loaded", retry_after=5)
        return self._model

    def load(self) -> None:
        """Load the bundle at the start of a worker; a refused one leaves the worker unready."""
        try:
            self._swap(open_model(self._pinned() or find_bundle(self.settings.model), self.settings))
        except UserError as error:
            # ending here would make BentoML start this worker again for ever
            self.refused = str(error)
            logger.error("%s", error)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="segment")

    def reload(self) -> Model:
        """Check and load the bundle that would be served now, then swap it in.

        Raises:
            UserError: If it is refused; the old one goes on serving.
        """
        with self._reloading:
            try:
                model = open_model(find_bundle(self.settings.model), self.settings)
            except UserError as error:
                metrics().reloads.labels("refused").inc()
                logger.error("reload refused: %s", error)
                raise
            self._swap(model)
            self._remember(model.bundle.folder)
            metrics().reloads.labels("swapped").inc()
            logger.info("reloaded %s %s", model.manifest.name, model.manifest.version)
            return model

    def close(self) -> None:
        """Stop the threads and free the model."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        if self._model is not None:
            self._model.close()
            self._model = None

    def _swap(self, model: Model) -> None:
        old, self._model = self._model, model
        self.refused = None
        if model.batcher is not None:
            model.batcher.on_batch = metrics().batch_size.observe
        metrics().serve(model.manifest, model.bundle.artifact.sha256)
        if old is not None:
            old.close()

    def _pinned(self) -> Path | None:
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder is not None:
            try:
                return Path(Path(folder, _RELOADED).read_text(encoding="utf-8"))
            except OSError:
                pass
        pinned = os.environ.get(PINNED_BUNDLE)
        return Path(pinned) if pinned else None

    def _remember(self, bundle: Path) -> None:
        """Let a worker that is started anew serve what its siblings serve."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder is not None:
            write_text_whole(Path(folder, _RELOADED), str(bundle))

    async def compute(self, request: RequestState, work: Callable[[], T]) -> T:
        """Run ``work`` in the worker's threads.

        Raises:
            ServingError: 504 when the deadline passes before a thread is free.
        """
        assert self._pool is not None
        queued = time.perf_counter()
        waiting = metrics().waiting
        waiting.inc()
        left_queue = threading.Lock()

        def start() -> T:
            if left_queue.acquire(blocking=False):
                waiting.dec()
            request.stages["queue"] = time.perf_counter() - queued
            check_alive(request)
            return work()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, start)
        finally:
            # cancelled while it still waited
            if left_queue.acquire(blocking=False):
                waiting.dec()


def check_alive(request: RequestState) -> None:
    """Stop work that nobody waits for.

    Raises:
        ServingError: 504 after the deadline or when the client has gone.
    """
    if request.cancelled or time.monotonic() > request.deadline:
        raise ServingError(504, "timeout", "the request took too long")
