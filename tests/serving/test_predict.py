"""The service against ``protoseg.predict`` on the same checkpoint."""

from __future__ import annotations

import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import PROJECT_ROOT

pytestmark = pytest.mark.slow


@dataclass
class Case:
    """A served bundle and the checkpoint it came from."""

    client: Any
    checkpoint: Any
    scenes: Any


@pytest.fixture(scope="module")
def trained() -> Any:
    """Helpers of the export tests, and one small network that names several classes."""
    spec = importlib.util.spec_from_file_location("export_helpers", PROJECT_ROOT / "tests/export/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    helpers = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules[spec.name] = helpers
    spec.loader.exec_module(helpers)
    config = helpers.load_config(None, list(helpers.TINY))
    return helpers, config, helpers.train_tiny(config, 60)


@pytest.fixture(scope="module", params=["none", "fixed"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, trained: Any, serve: Any
) -> Case:
    from protoseg.checkpoint import load_checkpoint
    from protoseg.data.synthetic import SyntheticScenes

    helpers, config, segmenter = trained
    outputs = "agreement"
    if request.param == "fixed":
        config = helpers.load_config(
            None, [*helpers.TINY, "data.resize.mode=fixed", "data.resize.height=48", "data.resize.width=80"]
        )
        outputs += ",logits_stride"
    run: Path = helpers.save_tiny(tmp_path_factory.mktemp(f"predict-{request.param}"), config, segmenter)
    done = helpers.run_command("export.onnx", run, "--outputs", outputs)
    assert done.code == 0, done.err + done.out
    scenes = SyntheticScenes(config.data.synthetic, "val")
    return Case(serve(model=str(run / "bundle")), load_checkpoint(run), scenes)


def test_served_masks_are_predicts(case: Case) -> None:
    from protoseg.predict.images import predict_image

    differing = total = 0
    rule = case.checkpoint.info.input
    for index in range(len(case.scenes)):
        # odd sizes too, where padding and upsampling matter
        pixels = np.ascontiguousarray(case.scenes.image(index)[: 64 - index, : 96 - 3 * index])
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        expected = predict_image(case.checkpoint.segmenter, pixels, rule)
        assert len(np.unique(expected.labels)) > 1
        response = case.client.post("/v1/segment", content=buffer.getvalue())
        served = np.asarray(Image.open(io.BytesIO(response.content)))
        differing += int((served != expected.labels).sum())
        total += served.size
        scores = case.client.post("/v1/segment?output=agreement", content=buffer.getvalue())
        agreement = np.asarray(Image.open(io.BytesIO(scores.content))) / 255
        if rule.resize.mode == "none":
            # the graph takes it at the decoder's stride and enlarges the map: borders differ
            assert abs(float(agreement.mean() - expected.label_probability.mean())) < 0.05
    # classes may tie within the rounding of two runtimes; nothing else may differ
    assert differing <= (0 if rule.resize.mode == "none" else total * 1e-4), f"{differing} of {total}"
