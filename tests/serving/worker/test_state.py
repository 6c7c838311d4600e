from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving_bundle import make_bundle
from serving.errors import BundleError
from serving.settings import Settings
from serving.worker.state import ServingState


def test_reload_serves_the_old_bundle_until_a_good_one_comes(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", version="1")
    state = ServingState(Settings(model=str(folder)))
    state.load()
    first = state.model
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"passed"', '"failed"'))
    with pytest.raises(BundleError, match="parity"):
        state.reload()
    assert state.model is first
    make_bundle(folder, version="2")
    with first:
        assert state.reload().manifest.version == "2"
        # a request that began on the old bundle ends on it
        assert first.manifest.version == "1"
        first.predict(np.zeros((8, 8, 3), np.uint8))
    assert state.model.manifest.version == "2"
    state.close()
