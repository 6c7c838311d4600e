"""Ray Serve, to compare the service with.

``python -m benchmarks.serving_ray BUNDLE`` (pip install "ray[serve]"). The file is the body of the
request, the mask goes back as a response.
"""

import io
import time

import ray
from PIL import Image as PilImage
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving_baselines import open_session, place_of, png, segment


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Segmentation:
    """An image in, a mask out."""

    def __init__(self, bundle: str) -> None:
        self.session = open_session(bundle)

    async def __call__(self, request: Request) -> Response:
        """Mask of the file in the body."""
        if request.url.path == "/readyz":
            return Response(b"ok")
        image = PilImage.open(io.BytesIO(await request.body()))
        return Response(png(segment(self.session, image)), media_type="image/png")


if __name__ == "__main__":
    given = place_of(__doc__)
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": given.host, "port": given.port})
    serve.run(Segmentation.bind(given.bundle), route_prefix="/")  # type: ignore[attr-defined]
    while True:
        time.sleep(3600)
