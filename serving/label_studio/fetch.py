"""Gets images from Label Studio, and from nowhere else that was not named."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import httpx

from protoseg.errors import UserError

MAX_BYTES = 128 * 2**20
_REDIRECTS = 3


class FetchError(UserError):
    """An image that could not be had."""


class LabelStudio:
    """Reads what Label Studio serves, with its token.

    Args:
        url: Address of Label Studio.
        token: A personal access token (which is exchanged for short ones) or a legacy token; may be empty.
        allowed: Further hosts that images may lie on; they never see the token.
        timeout: Seconds for an answer.
        transport: For tests.
    """

    def __init__(
        self, url: str, token: str, *, allowed: Collection[str] = (), timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        try:
            self.url = httpx.URL(url if url.endswith("/") else f"{url}/")
        except httpx.InvalidURL as error:
            raise UserError(f"--label-studio {url!r} is no address: {error}") from error
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise UserError(f"--label-studio must be an address as http://localhost:8080, got {url!r}")
        self._token, self._allowed = token, frozenset(allowed)
        self._http = httpx.Client(timeout=timeout, transport=transport)
        self._access = ""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def read(self, address: str) -> bytes:
        """An image's bytes.

        Args:
            address: As in a task: a path on Label Studio (``/data/upload/...``), or a full address.

        Raises:
            FetchError: If it lies on another host, is too large, or cannot be had.
        """
        url = self._place(address)
        renewed = False
        for _ in range(_REDIRECTS + 2):
            own = self._is_own(url)
            if not own and url.host not in self._allowed:
                raise FetchError(
                    f"{address} leads to {url.host}, which is not Label Studio ({self.url.host}); allow it "
                    f"with --allow-host {url.host}"
                )
            try:
                headers = self._headers() if own else {}
                with self._http.stream("GET", url, headers=headers) as answer:
                    if answer.has_redirect_location:
                        url = url.join(answer.headers["location"])
                        continue
                    if answer.status_code == 401 and own and self._access and not renewed:
                        self._access, renewed = "", True
                        continue
                    return _body(answer, address)
            except httpx.HTTPError as error:
                raise FetchError(f"{url.host}: {error or type(error).__name__}") from error
        raise FetchError(f"{address} leads on more than {_REDIRECTS} times")

    def _place(self, address: str) -> httpx.URL:
        try:
            url = self.url.join(address)
        except httpx.InvalidURL as error:
            raise FetchError(f"{address!r} is no address of an image: {error}") from error
        if url.scheme not in ("http", "https"):
            raise FetchError(
                f"{address} is not fetched: let the storage give http addresses (`Use pre-signed URLs`), or "
                "import images as files"
            )
        return url

    def _is_own(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self.url.scheme, self.url.host, self.url.port)

    def _headers(self) -> dict[str, str]:
        if not self._token:
            return {}
        if self._token.count(".") != 2:
            return {"authorization": f"Token {self._token}"}
        with self._lock:
            if not self._access:
                answer = self._http.post(self.url.join("api/token/refresh"), json={"refresh": self._token})
                if not answer.is_success:
                    raise FetchError(
                        f"{self.url.host} refuses the access token ({answer.status_code}); make a new one in "
                        "Label Studio's Account & Settings, and set LABEL_STUDIO_API_KEY"
                    )
                told: dict[str, Any] = answer.json()
                self._access = str(told.get("access", ""))
            return {"authorization": f"Bearer {self._access}"}


def _body(answer: httpx.Response, address: str) -> bytes:
    """The body of a good answer, as far as it is not too large.

    Raises:
        FetchError: If it is, or the answer is none.
    """
    if not answer.is_success:
        hint = {
            401: "set LABEL_STUDIO_API_KEY to an access token of Label Studio",
            403: "the token's user may not see it",
            404: "local files need a storage of the project and LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED",
        }.get(answer.status_code, "see Label Studio's log")
        raise FetchError(f"{address}: Label Studio answers {answer.status_code}; {hint}")
    parts, size = [], 0
    for part in answer.iter_bytes():
        size += len(part)
        if size > MAX_BYTES:
            raise FetchError(f"{address} is larger than {MAX_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)
