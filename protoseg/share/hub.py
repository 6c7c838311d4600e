"""huggingface_hub, imported when it is needed, and its errors as texts for a user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from protoseg.errors import UserError
from protoseg.share.address import HubAddress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FORBIDDEN = 403
_UNKNOWN_TOKEN = 401


class HubError(UserError):
    """A hub that does not give or take what was asked."""


def client() -> ModuleType:
    """The package ``huggingface_hub``.

    Raises:
        HubError: If it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors  # neither is found as an attribute unless somebody has imported it
    except ImportError as error:
        raise HubError(
            "cards and hf:// need the package huggingface_hub: pip install 'huggingface_hub>=1,<3'"
        ) from error
    return huggingface_hub


def endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT``, else the public one."""
    # read when called: huggingface_hub reads it once, when it is first imported
    default: str = client().constants.ENDPOINT
    return os.environ.get("HF_ENDPOINT", default).rstrip("/")


def api(token: str | None = None) -> HfApi:
    """A client of the hub.

    Args:
        token: None takes ``HF_TOKEN``, else what ``hf auth login`` stored.
    """
    from protoseg import __version__

    made: HfApi = client().HfApi(
        endpoint=endpoint(), token=token, library_name="protoseg", library_version=__version__
    )
    return made


def need_token(token: str | None) -> None:
    """Refuse to go on without a token.

    Raises:
        HubError: If none is given, set or stored.
    """
    if token is None and client().get_token() is None:
        raise HubError(
            f"uploading needs a token with write access: make one at {endpoint()}/settings/tokens, then "
            "hf auth login, or set HF_TOKEN"
        )


@contextmanager
def hub_errors(address: HubAddress, doing: str) -> Iterator[None]:
    """Errors of the hub, of the network and of the cache as ``HubError``.

    Args:
        address: Whose.
        doing: What is being done, as ``load``.
    """
    errors = client().errors
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"cannot {doing} {address}: HF_HUB_OFFLINE is set") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"cannot {doing} {address}: {endpoint()} is not reached{_offline()}, and the cache ({_cache()}) "
            "does not hold all of it; load it once with a network, or set HF_ENDPOINT to another hub"
        ) from error
    except errors.GatedRepoError as error:
        raise HubError(
            f"cannot {doing} {address}: its owner asks for terms to be accepted first, at "
            f"{endpoint()}/{address.repo}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"cannot {doing} {address}: {address.repo} has no revision {address.revision or 'main'}; a "
            f"branch, tag or commit is expected ({endpoint()}/{address.repo}/tree/main lists them)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"cannot {doing} {address}: {_not_seen(address)}") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"cannot {doing} {address}: {_answer(error, address)}") from error
    except errors.HTTPError as error:
        # the base of what the HTTP client raises: refused, timed out, no such host
        raise HubError(
            f"cannot {doing} {address}: {endpoint()} is not reached ({error}); check the network, a proxy "
            "(HTTPS_PROXY) or HF_ENDPOINT"
        ) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise HubError(f"cannot {doing} {address}: {error}") from error


def _offline() -> str:
    return " (HF_HUB_OFFLINE is set)" if client().constants.HF_HUB_OFFLINE else ""


def _cache() -> str:
    return str(client().constants.HF_HUB_CACHE)


def _not_seen(address: HubAddress) -> str:
    who = "without a token (hf auth login, or HF_TOKEN)" if client().get_token() is None else "by your token"
    return (
        f"{endpoint()} has no model {address.repo}, or it is private and not seen {who}; check the name at "
        f"{endpoint()}/{address.repo}"
    )


def _answer(error: Exception, address: HubAddress) -> str:
    """What an answer that is no success means."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == _UNKNOWN_TOKEN:
        return f"{endpoint()} does not know your token; hf auth login, or set HF_TOKEN to a valid one"
    said = str(getattr(error, "server_message", None) or error).strip()
    if status == _FORBIDDEN:
        owner = address.repo.partition("/")[0]
        return (
            f"your token has no right to it ({said}); it needs write access to {owner}, which is you or an "
            "organisation of yours (hf auth whoami says who you are)"
        )
    return f"{endpoint()} answers {status}: {said}"
