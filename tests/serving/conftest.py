from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from protoseg.manifest import Manifest, read_manifest

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


@pytest.fixture(scope="session", autouse=True)
def bentoml_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    # a shared home would let two servers delete each other's metrics
    os.environ["BENTOML_HOME"] = str(tmp_path_factory.mktemp("bentoml"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="session")
def image() -> NDArray[np.uint8]:
    return sample_image(60, 90, seed=3)


@pytest.fixture(scope="session")
def png(image: NDArray[np.uint8]) -> bytes:
    return encode(image)


def encode(array: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def serve(bundle: Path) -> Iterator[Serve]:
    """Makes in-process clients of services with the given settings."""
    from starlette.testclient import TestClient

    from serving.service import build_service
    from serving.settings import Settings

    with ExitStack() as stack:

        def start(**settings: Any) -> Any:
            service = build_service(Settings.model_validate({"model": str(bundle), "threads": 2} | settings))
            client = TestClient(service.to_asgi(), raise_server_exceptions=False)
            return stack.enter_context(client)

        yield start


@pytest.fixture(scope="module")
def client(serve: Serve) -> Any:
    return serve()


@pytest.fixture(scope="session")
def helpers() -> Any:
    class Helpers:
        encode = staticmethod(encode)
        sha256 = staticmethod(sha256)

    return Helpers
