"""Uploads a model to a hub: ``python -m protoseg.share.push RUN hf://user/name``.

Checkpoint, bundle, card, pictures and settings go up in one commit; optimiser states, engines and paths of
this machine stay. What will be uploaded is listed first, and ``--dry-run`` ends there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from protoseg.errors import UserError, guarded
from protoseg.share.address import SCHEME, HubAddress, parse_address
from protoseg.share.card import (
    CARD_NAME,
    UNKNOWN,
    Terms,
    add_terms,
    card_text,
    check_terms,
    edited,
    read_card,
    terms_of,
)
from protoseg.share.contents import Model, Part, Shared, collect, find_model
from protoseg.share.hub import HubError, api, client, endpoint, hub_errors, need_token

_OURS = ("checkpoint/", "bundle/", "pictures/")
"""Folders of a repository whose other files an upload removes: they are of an earlier model."""


@dataclass(frozen=True)
class Upload:
    """What goes where."""

    address: HubAddress
    shared: Shared
    model: Model
    terms: Terms
    own_card: bool
    """Whether the card is a person's."""

    def listing(self) -> str:
        """What will be uploaded, with sizes, and what was changed for it."""
        sizes = self.shared.sizes()
        width = max(map(len, sizes))
        lines = [f"  {name:<{width}}  {_size(size):>9}" for name, size in sizes.items()]
        lines.append(f"  {f'{len(sizes)} files':<{width}}  {_size(sum(sizes.values())):>9}")
        lines += [f"not as it is here: {change}" for change in self.shared.replaced]
        if self.model.left_out:
            lines.append(f"stays here: {', '.join(self.model.left_out)} (an engine, or not proven)")
        if self.model.mismatched:
            lines.append(
                "the bundle was not made from this checkpoint: export again, or push one with --only"
            )
        if self.shared.images:
            lines.append(f"these show your images: {', '.join(self.shared.images)}")
        if self.terms.license == UNKNOWN and not self.own_card:
            lines.append("licence: unknown; --license names one, so that others know what they may do")
        return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def prepare(
    path: str | Path,
    address: HubAddress,
    *,
    only: Part | None = None,
    student: bool = False,
    pictures: bool = True,
    license: str | None = None,  # noqa: A002
    datasets: Sequence[str] = (),
) -> Upload:
    """Find out what would be uploaded, without asking the hub.

    Args:
        path: Run folder, checkpoint folder or bundle folder.
        address: Where to.
        only: ``checkpoint`` or ``bundle`` alone; None takes what there is.
        student: With the student's weights.
        pictures: With the run's pictures, which show images.
        license: Licence for the card; None keeps what the card there says.
        datasets: Data sets for the card, likewise.

    Raises:
        UserError: If there is no such model, or a file of it is missing.
    """
    model = find_model(path, only)
    shared = collect(model, student=student, pictures=pictures)
    card = read_card(model.folder)
    terms = check_terms(license, datasets, terms_of(card) if card else Terms())
    own = card is not None and edited(card)
    if own and (license or datasets):
        raise UserError(
            f"{model.folder / CARD_NAME} was edited, and is uploaded as it is: write licence and data sets "
            "into it, and leave --license and --dataset out"
        )
    if card is None or not own:
        known = {file.relative_to(model.folder).as_posix() for file in model.pictures()}
        card = card_text(model, terms, address, [name for name in shared.files if name in known])
    shared.files = {CARD_NAME: card.encode(), **shared.files}
    return Upload(address, shared, model, terms, own)


def send(
    upload: Upload, *, public: bool = False, force: bool = False, message: str | None = None,
    token: str | None = None,
) -> tuple[str, list[str]]:  # fmt: skip
    """Upload in one commit; the repository is made if there is none.

    Args:
        upload: What.
        public: Let everybody read it. False makes a private repository, and refuses a public one.
        force: Write over a card that was edited on the hub.
        message: Of the commit.
        token: Access token; None takes ``HF_TOKEN``, else what ``hf auth login`` stored.

    Returns:
        Address of the commit, and remarks.

    Raises:
        HubError: If the hub does not take it; the repository is then as it was.
    """
    address, hub, files = upload.address, client(), dict(upload.shared.files)
    need_token(token)
    remarks = []
    with hub_errors(address, "push to"):
        hub_api = api(token)
        if (visible := _make(hub_api, address, public)) is not None:
            remarks.append(visible)
        there = _files_there(hub_api, address)
        if CARD_NAME in there and not force and _edited_there(hub_api, address, files[CARD_NAME]):
            del files[CARD_NAME]
            remarks.append("the card on the hub was edited, and stays as it is; --force writes over it")
        old = [name for name in there if name.startswith(_OURS) and name not in files]
        done = hub_api.create_commit(
            address.repo,
            [
                *(hub.CommitOperationDelete(name) for name in old),
                *(hub.CommitOperationAdd(name, content) for name, content in files.items()),
            ],
            commit_message=message or f"Upload {upload.model.folder.resolve().name} with protoseg",
            revision=address.revision,
        )
    if old:
        remarks.append(f"removed there, of an earlier model: {', '.join(old)}")
    return str(done.commit_url), remarks


def _make(hub_api: Any, address: HubAddress, public: bool) -> str | None:
    """See that the repository and the branch are there and as visible as is wanted; a remark, or None."""
    errors = client().errors
    remark = None
    try:
        private = hub_api.repo_info(address.repo).private
    except errors.RepositoryNotFoundError:
        hub_api.create_repo(address.repo, private=not public, exist_ok=True)
        remark = f"made {address.repo}, {'public' if public else 'private'}"
    else:
        if not private and not public:
            raise HubError(
                f"{address.repo} is public: everybody could read what is uploaded. --public says that this "
                f"is meant; {endpoint()}/{address.repo}/settings makes it private"
            )
        if private and public:
            remark = (
                f"{address.repo} is private and stays so; {endpoint()}/{address.repo}/settings changes it"
            )
    if address.revision is not None:
        hub_api.create_branch(address.repo, branch=address.revision, exist_ok=True)
    return remark


def _files_there(hub_api: Any, address: HubAddress) -> list[str]:
    return list(hub_api.list_repo_files(address.repo, revision=address.revision))


def _edited_there(hub_api: Any, address: HubAddress, ours: Path | bytes) -> bool:
    """Whether the card on the hub is a person's, and another one than ours."""
    file = Path(hub_api.hf_hub_download(address.repo, CARD_NAME, revision=address.revision))
    theirs = file.read_bytes()
    return theirs != ours and edited(theirs.decode("utf-8", "replace"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.share.push",
        description="Upload a model to the Hugging Face Hub: checkpoint and bundle (those that there are), "
        "model card, pictures and settings, in one commit. States, engines, unproven files and paths of this "
        "machine are left out. A new repository is private unless --public is given.",
        epilog="HF_TOKEN (or hf auth login) gives the token, HF_ENDPOINT another hub. "
        "example: protoseg push runs/cracks hf://me/cracks --license cc-by-4.0 --dry-run",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder, checkpoint folder or bundle folder")
    add("address", metavar=f"{SCHEME}USER/NAME[@BRANCH]", help="where to; a branch is made if need be")
    add("--dry-run", action="store_true", help="list what would be uploaded, and ask no hub")
    add("--public", action="store_true", help="let everybody read it (default: private)")
    add("--only", choices=get_args(Part), help="leave the other part out")
    add("--student", action="store_true", help="with the student's weights (default: the teacher's alone)")
    add("--no-pictures", action="store_true", help="without the run's pictures, which show its images")
    add("--message", metavar="TEXT", help="message of the commit")
    add("--force", action="store_true", help="write over a card that was edited on the hub")
    add_terms(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """List, and upload; returns the exit code."""
    args = _parser().parse_args(argv)

    def body() -> int:
        address = parse_address(args.address)
        upload = prepare(
            args.run, address, only=args.only, student=args.student, pictures=not args.no_pictures,
            license=args.license, datasets=args.dataset,
        )  # fmt: skip
        sys.stdout.write(f"{address} on {endpoint()}\n{upload.listing()}\n")
        if args.dry_run:
            sys.stdout.write("dry run: nothing was uploaded\n")
            return 0
        sys.stdout.flush()
        url, remarks = send(upload, public=args.public, force=args.force, message=args.message)
        for remark in remarks:
            sys.stdout.write(f"{remark}\n")
        sys.stdout.write(f'{url}\nprotoseg.load("{address}") loads it\n')
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
