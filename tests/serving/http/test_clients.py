"""Clients that other servers come with, against a real process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.nearest_color import sample_image
from benchmarks.serving_server import Server

pytestmark = pytest.mark.slow
NAME = "nearest-color"


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with Server({"PROTOSEG_MODEL": str(bundle), "PROTOSEG_WORKERS": "2"}) as running:
        running.wait_ready()
        yield running


def read(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_tritonclient(server: Server) -> None:
    http = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.get_server_metadata()["name"] == "protoseg"
    assert client.get_model_repository_index()[0]["name"] == NAME
    assert client.get_model_config(NAME)["input"][0]["data_type"] == "TYPE_UINT8"
    (tensor,) = client.get_model_metadata(NAME)["inputs"]

    images = np.stack([sample_image(24, 36, seed=seed) for seed in (0, 1)])
    sent = http.InferInput(tensor["name"], images.shape, tensor["datatype"])
    answers = {}
    for binary in (True, False):
        sent.set_data_from_numpy(images, binary_data=binary)
        wanted = [http.InferRequestedOutput("labels", binary_data=binary)]
        answers[binary] = client.infer(NAME, [sent], outputs=wanted).as_numpy("labels")
    assert answers[True].shape == (2, 24, 36)
    np.testing.assert_array_equal(answers[True], answers[False])

    counted = client.get_inference_statistics(NAME)["model_stats"][0]
    assert (counted["inference_count"], counted["inference_stats"]["success"]["count"]) == (4, 2)
    with pytest.raises(Exception, match="there is no such model; this is nearest-color 1"):
        client.get_model_metadata("other")
    wrong = http.InferInput("picture", images.shape, "UINT8")
    wrong.set_data_from_numpy(images)
    with pytest.raises(Exception, match="inference request is not as it should be"):
        client.infer(NAME, [wrong])


def test_boto3_as_sagemaker_relays_it(server: Server, png: bytes) -> None:
    boto3: Any = pytest.importorskip("boto3", reason="pip install boto3")
    client = boto3.client(
        "sagemaker-runtime", region_name="eu-west-1", endpoint_url=server.url,
        aws_access_key_id="none", aws_secret_access_key="none",
    )  # fmt: skip

    def relay(request: Any, **_: Any) -> None:
        # SageMaker passes a request on to the container's /invocations, with these headers
        request.url = request.url.replace("/endpoints/segmenter/invocations", "/invocations")

    client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", relay)
    reply = client.invoke_endpoint(EndpointName="segmenter", Body=png, ContentType="image/png")
    assert read(reply["Body"].read()).shape == (60, 90)
    reply = client.invoke_endpoint(
        EndpointName="segmenter", Body=png, ContentType="image/png", Accept="application/json",
        CustomAttributes="output=rle&classes=red",
    )  # fmt: skip
    assert reply["ContentType"] == "application/json"
    assert b'"rle"' in reply["Body"].read()
    with pytest.raises(client.exceptions.ClientError, match="415"):
        client.invoke_endpoint(EndpointName="segmenter", Body=b"text", ContentType="image/png")
