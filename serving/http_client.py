"""Client of the service.

::

    with Client("http://127.0.0.1:3000") as client:
        result = client("street.jpg")  # as a model that protoseg.load gives
        png = client.segment(Path("street.jpg"))
        numbers = client.describe(Path("street.jpg"))
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import httpx
import numpy as np

from protoseg.errors import UserError

if TYPE_CHECKING:
    from protoseg.api.inputs import ImageInput
    from protoseg.api.result import Result
    from serving.remote import Served


_RETRIED = frozenset({429, 502, 503})
_LONGEST_WAIT_S = 30.0
_CONCURRENT = 4


class ClientError(UserError):
    """An answer that is not a result.

    Attributes:
        status: HTTP status, 0 when there was no answer.
        code: The service's stable name of the error.
        request_id: Id to look for in the server's log, may be empty.
    """

    def __init__(self, status: int, code: str, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id


def _error_of(response: httpx.Response) -> ClientError:
    try:
        error = response.json()["error"]
        return ClientError(response.status_code, error["code"], error["message"], error["request_id"])
    except (ValueError, KeyError, TypeError):
        text = " ".join(response.text[:200].split())
        return ClientError(response.status_code, "error", text or f"status {response.status_code}")


class Client:
    """Talks to one service; safe to share among threads.

    Called, it segments images as a loaded model does.

    Args:
        url: Address of the service.
        api_key: Sent as bearer token when given.
        timeout: Seconds for an answer.
        retries: How often 429, 502, 503 and lost connections are tried again.
        transport: For tests.
        sleep: For tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._retries = retries
        self._sleep = sleep
        self._served: Served | None = None

    def __enter__(self) -> Self:
        """Nothing is opened before the first request."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            wait = min(_LONGEST_WAIT_S, 0.25 * 2**attempt)
            try:
                response = self._http.request(method, path, **options)
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                if last:
                    raise ClientError(0, "unreachable", f"{self._http.base_url}: {error}") from error
            except httpx.TimeoutException as error:
                raise ClientError(0, "timeout", f"no answer in {self._http.timeout.read:g} s") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ClientError(0, "unreachable", f"{self._http.base_url}: {error}") from error
            else:
                if response.is_success:
                    return response
                if last or response.status_code not in _RETRIED:
                    raise _error_of(response)
                asked = response.headers.get("retry-after", "")
                wait = min(_LONGEST_WAIT_S, float(asked)) if asked.isdigit() else wait
            self._sleep(wait)
        raise AssertionError("the loop returns or raises")

    @overload
    def __call__(
        self,
        image: ImageInput,
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
    ) -> list[Result]: ...

    def __call__(
        self,
        image: ImageInput | list[Any] | tuple[Any, ...],
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
    ) -> Result | list[Result]:
        """Segment an image, or each of a list, through the service.

        Args:
            image: As for a model that ``protoseg.load`` gives. Files and bytes are sent as they are (the
                service must accept their format), the rest as PNG.
            scores: Ask for confidence and agreement too, each with a request of its own and in steps of
                1/255.
            windows: Let the service keep the image at its own size and compute it in tiles (``tile=1``).
            novelty: Ask for novelty too, likewise.
            explain: Ask why, too: of every cell of the feature map, similarities in steps of 1/255, and the
                patches of the prototypes that are nearest somewhere.

        Raises:
            ClientError: If the service refuses the image or cannot be reached.
            UserError: If the image cannot be read, or the service cannot tell what is asked for.
        """
        if isinstance(image, list | tuple):
            ask = partial(self, scores=scores, windows=windows, novelty=novelty, explain=explain)
            with ThreadPoolExecutor(_CONCURRENT) as pool:
                return list(pool.map(ask, image))
        # an image of the service holds this client without the library behind results
        from protoseg.api.inputs import origin_of
        from protoseg.api.result import Result
        from serving.remote import Served, read_grounds, read_map, upload

        origin, grounds = origin_of(image), None
        asked = {"tile": "1"} if windows else {}
        for _ in range(3):
            served = self._served = self._served or Served.of(self.model())
            served.check(novelty=novelty, explain=explain)
            data, load = upload(image, served.rule)
            names = ["mask", *(n for n in ("confidence", "agreement") if scores and served.has(n))]
            names += ["novelty"] if novelty else []
            versions = set()
            if explain:
                # first, so that patches are fetched between two answers of one version
                reply = self._post(data, {**asked, "output": "explain", "grid": "1"})
                versions.add(reply.headers.get("x-model-version", ""))
                grounds = read_grounds(reply.json(), served, self._fetch)
            answers = {name: self._post(data, {**asked, "output": name}) for name in names}
            versions |= {answer.headers.get("x-model-version", "") for answer in answers.values()}
            if versions == {served.info.version}:
                maps = {name: read_map(answer.content) for name, answer in answers.items()}
                grey = {name: np.asarray(maps[name] / 255, np.float32) for name in names[1:]}
                return Result(
                    maps["mask"], grey.get("confidence"), grey.get("agreement"), served.info, origin, load,
                    grey.get("novelty"), grounds,
                )  # fmt: skip
            # another model has been swapped in meanwhile
            self._served = None
        raise ClientError(0, "model_changed", f"{self._http.base_url}: its model changes all the time")

    def _fetch(self, path: str) -> bytes:
        return self._send("GET", path).content

    def _post(self, data: bytes, parameters: dict[str, str]) -> httpx.Response:
        headers = {"content-type": "application/octet-stream"}
        return self._send("POST", "/v1/segment", content=data, params=parameters, headers=headers)

    def segment(self, image: bytes | Path, output: str = "mask", **parameters: str) -> bytes:
        """Segment an image.

        Args:
            image: File name or content.
            output: As in ``POST /v1/segment``; ``mask`` is a palette PNG of class ids.
            parameters: ``size``, ``classes``, ``tile``, ``alpha``, ``format``, ``simplify``.

        Raises:
            ClientError: If the service refuses the image or cannot be reached.
            OSError: If the file cannot be read.
        """
        data = image if isinstance(image, bytes) else image.read_bytes()
        return self._post(data, {**parameters, "output": output}).content

    def describe(self, image: bytes | Path, **parameters: str) -> dict[str, Any]:
        """Numbers of an image: classes with pixels, fraction, confidence and agreement."""
        value: dict[str, Any] = json.loads(self.segment(image, "json", **parameters))
        return value

    def model(self) -> dict[str, Any]:
        """The served model, its classes and settings."""
        value: dict[str, Any] = self._send("GET", "/v1/model").json()
        return value

    def reload(self) -> dict[str, Any]:
        """Let the service check and swap its bundle; the key must be an admin key."""
        value: dict[str, Any] = self._send("POST", "/v1/reload").json()
        return value
