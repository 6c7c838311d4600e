"""LitServe, to compare the service with.

``python -m benchmarks.serving_litserve BUNDLE`` (pip install litserve). The file comes in a form, the
mask goes back as a response. The class stands in the module because LitServe starts its worker as a new
process.
"""

from typing import Any

import litserve
from fastapi import Request, Response
from PIL import Image as PilImage
from PIL.Image import Image

from benchmarks.serving_baselines import open_session, place_of, png, segment


class Segmentation(litserve.LitAPI):  # type: ignore[misc]
    """PIL image in, PIL image out, between LitServe's two hooks."""

    def __init__(self, bundle: str) -> None:
        super().__init__(api_path="/segment")
        self.bundle = bundle

    def setup(self, device: str) -> None:
        """Load the network in the worker."""
        self.session = open_session(self.bundle)

    def decode_request(self, request: Request) -> Image:
        """The file of the form, which LitServe has read already when it is told of a request."""
        form: Any = request
        return PilImage.open(form["image"].file)

    def predict(self, image: Image) -> Image:
        """Mask of an image."""
        return segment(self.session, image)

    def encode_response(self, mask: Image) -> Response:
        """The mask as a file."""
        return Response(png(mask), media_type="image/png")


if __name__ == "__main__":
    given = place_of(__doc__)
    server = litserve.LitServer(Segmentation(given.bundle), accelerator="cpu", healthcheck_path="/readyz")
    server.run(host=given.host, port=given.port, generate_client_file=False, log_level="error",
               pretty_logs=False)  # fmt: skip
