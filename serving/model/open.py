"""From a bundle folder to a model that has reproduced its samples on this machine."""

from __future__ import annotations

import logging
from pathlib import Path

from serving.errors import BundleError
from serving.model.bundle import Bundle, check_bundle
from serving.model.model import Model
from serving.model.network import open_network
from serving.model.selftest import self_test
from serving.settings import Settings

logger = logging.getLogger(__name__)


def open_model(folder: Path, settings: Settings) -> Model:
    """Check a bundle and load the best of its files that works here.

    Raises:
        UserError: If none can be served.
    """
    bundles = check_bundle(folder, settings)
    for bundle in bundles[:-1]:
        try:
            return _open(bundle, settings)
        except BundleError as error:
            logger.warning("%s is passed over: %s", bundle.artifact.name, error)
    return _open(bundles[-1], settings)


def _open(bundle: Bundle, settings: Settings) -> Model:
    model = Model(bundle, open_network(bundle, settings), settings)
    try:
        self_test(model, fuse=settings.fused)
    except BaseException:
        model.close()
        raise
    return model
