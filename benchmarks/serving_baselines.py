"""What people write first, to compare the service with: stock BentoML, and FastAPI with torch.

``bentoml serve benchmarks.serving_baselines:Stock`` (BENCH_BUNDLE names the bundle) and
``uvicorn --factory benchmarks.serving_baselines:make_fastapi`` (BENCH_CHECKPOINT names the checkpoint);
LitServe and Ray Serve are in modules of their own. Each as the examples of its documentation do it, with one
worker and one thread for the network.

Annotations are evaluated here: FastAPI could not resolve them as strings inside a function.
"""

import argparse
import io
import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from PIL import Image as PilImage
from PIL.Image import Image

from benchmarks.common import parser


def place_of(text: str | None) -> argparse.Namespace:
    """Bundle, host and port of a server's command line, whose help is ``text``."""
    command = parser(text)
    command.add_argument("bundle")
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=8000)
    return command.parse_args()


def open_session(bundle: str) -> Any:
    """The bundle's network in ONNX Runtime, with one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = Path(bundle) / "model.onnx"
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def segment(session: Any, image: Image) -> Image:
    """Mask of an image."""
    batch = np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None])
    return PilImage.fromarray(session.run(["labels"], {"image": batch})[0][0])


def png(mask: Image) -> bytes:
    """A mask as a file."""
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


@bentoml.service(name="stock", traffic={"timeout": 60})
class Stock:
    """PIL image in, PIL image out, as BentoML's own examples do it."""

    def __init__(self) -> None:
        self.session = open_session(os.environ["BENCH_BUNDLE"])

    @bentoml.api
    def segment(self, image: Image) -> Image:
        """Mask of an image."""
        return segment(self.session, image)


def make_fastapi() -> Any:
    """A plain FastAPI service around the checkpoint in torch (needs fastapi, which is not a dependency)."""
    import torch
    from fastapi import FastAPI, Request, Response

    from protoseg.checkpoint import load_checkpoint
    from protoseg.predict.images import predict_image

    torch.set_num_threads(1)
    checkpoint = load_checkpoint(os.environ["BENCH_CHECKPOINT"])
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> str:
        return "ok"

    def mask(data: bytes) -> bytes:
        image = np.array(PilImage.open(io.BytesIO(data)).convert("RGB"))
        result = predict_image(checkpoint.segmenter, image, checkpoint.info.input)
        return png(PilImage.fromarray(result.labels))

    @app.post("/segment")
    async def segment(request: Request) -> Response:
        data = await request.body()
        from starlette.concurrency import run_in_threadpool

        return Response(await run_in_threadpool(mask, data), media_type="image/png")

    return app
