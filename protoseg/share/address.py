"""``hf://user/name[@revision]``: where a model lies on a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from protoseg.errors import UserError

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPO = re.compile(f"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class HubAddress:
    """A repository of a hub, at a revision."""

    repo: str
    """``user/name``."""
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    """Whether a reference means a hub rather than a path."""
    return text.startswith(SCHEME)


def parse_address(text: str, revision: str | None = None) -> HubAddress:
    """The address behind ``hf://user/name[@revision]``, or ``user/name`` where nothing else can be meant.

    Args:
        text: The address.
        revision: A revision that is given beside it.

    Raises:
        UserError: If it is none, or there are two revisions.
    """
    repo, at, named = text.removeprefix(SCHEME).partition("@")
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or (at and not named):
        raise UserError(
            f"{text!r} is no address of a model; expected hf://user/name or hf://user/name@revision, names "
            "of at most 96 letters, digits and single . _ -"
        )
    if named and revision and named != revision:
        raise UserError(f"{text} names the revision {named}, and revision={revision!r} another one")
    return HubAddress(repo, named or revision)
