"""Writes a model card: ``python -m protoseg.share.card RUN``.

The card is ``README.md`` with the metadata that the Hugging Face Hub reads, made from the checkpoint's and
the bundle's own descriptions: the same model gives the same text. One that was edited is not written over.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protoseg.errors import UserError, guarded
from protoseg.files import write_text_whole
from protoseg.share.address import HubAddress
from protoseg.share.contents import Model, find_model
from protoseg.share.hub import client
from protoseg.share.sections import Facts, sections

CARD_NAME = "README.md"
UNKNOWN = "unknown"
_MARK = re.compile(r"\n<!-- protoseg card ([0-9a-f]{64}):[^\n]*-->\n$")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Terms:
    """What only the owner knows."""

    license: str = UNKNOWN
    """Identifier as the Hub has it, ``apache-2.0`` say."""
    datasets: tuple[str, ...] = ()
    """Ids of data sets on the Hub."""


def check_terms(license: str | None, datasets: Sequence[str], default: Terms) -> Terms:  # noqa: A002
    """The terms that a command line names, over those that a card has.

    Raises:
        UserError: If they cannot be right.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(
            f"--license takes an identifier of the Hub, as apache-2.0, cc-by-4.0 or other, got {license!r}; "
            "all are at https://huggingface.co/docs/hub/repositories-licenses"
        )
    for name in datasets:
        if not _DATASET.fullmatch(name):
            raise UserError(f"--dataset takes the id of a data set on the Hub, as user/name, got {name!r}")
    return Terms(license or default.license, tuple(datasets) or default.datasets)


def card_text(
    model: Model, terms: Terms, address: HubAddress | None = None, pictures: Sequence[str] = ()
) -> str:
    """The card.

    Args:
        model: What is described.
        terms: Licence and data sets.
        address: Where it will lie; None leaves a name to fill in.
        pictures: Pictures to show, by their path beside the card.

    Returns:
        Markdown with YAML in front, and a mark at the end that tells whether it was edited.
    """
    facts = Facts.of(model)
    body = sections(facts, terms.license, str(address or "hf://USER/NAME"), pictures)
    text = f"---\n{_metadata(facts, terms)}\n---\n\n{body}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- protoseg card {digest}: written anew as long as nobody edits it -->\n"


def _metadata(facts: Facts, terms: Terms) -> str:
    hub = client()
    network = facts.network
    tags = ["protoseg", "semantic-segmentation"]
    base = None
    if network is not None:
        tags += ["semi-supervised"] if facts.semi_supervised else []
        tags.append(network.architecture)
        # timm keeps what it gives at the hub under these names
        base = f"timm/{network.encoder}" if network.pretrained == "timm" and "." in network.encoder else None
    if facts.manifest is not None:
        tags.append("onnx")
    data: Any = hub.ModelCardData(
        license=terms.license, library_name="protoseg", pipeline_tag="image-segmentation", tags=tags,
        base_model=base, datasets=list(terms.datasets) or None, metrics=["mean_iou"],
        model_name=facts.name, eval_results=_results(hub, facts, terms),
    )  # fmt: skip
    return str(data.to_yaml(line_break="\n"))


def _results(hub: Any, facts: Facts, terms: Terms) -> list[Any] | None:
    names = {"mean_iou": ("miou", "mean IoU"), "pixel_accuracy": ("pixel_accuracy", "pixel accuracy")}
    found = []
    for kind, (key, title) in names.items():
        for head, value in facts.scores(key).items():
            found.append(
                hub.EvalResult(
                    task_type="image-segmentation", task_name="semantic segmentation",
                    dataset_type=terms.datasets[0] if terms.datasets else "custom",
                    dataset_name=facts.data_name, dataset_split="validation",
                    dataset_args=facts.hashes or None,
                    metric_type=kind, metric_name=f"{title}, {head} head", metric_value=round(value, 4),
                )
            )  # fmt: skip
    return found or None


def edited(text: str) -> bool:
    """Whether a card is a person's, rather than as it was written here."""
    mark = _MARK.search(text)
    return mark is None or hashlib.sha256(text[: mark.start()].encode()).hexdigest() != mark[1]


def terms_of(text: str) -> Terms:
    """Licence and data sets that a card names; the defaults where it names none."""
    try:
        data = client().ModelCard(text, ignore_metadata_errors=True).data
    except ValueError:
        return Terms()
    datasets = data.datasets or []
    return Terms(
        str(data.license or UNKNOWN), tuple([datasets] if isinstance(datasets, str) else map(str, datasets))
    )


def read_card(folder: Path) -> str | None:
    """The card of a folder, or None."""
    file = folder / CARD_NAME
    return file.read_text(encoding="utf-8") if file.is_file() else None


def write_card(
    path: str | Path, license: str | None = None, datasets: Sequence[str] = (), *, force: bool = False  # noqa: A002
) -> Path:  # fmt: skip
    """Write the card of a run, a checkpoint or a bundle into its folder.

    Args:
        path: The folder.
        license: Identifier as the Hub has it; None keeps what the card there names, else ``unknown``.
        datasets: Ids of data sets on the Hub; none keeps likewise.
        force: Write over a card that was edited.

    Returns:
        The file.

    Raises:
        UserError: If there is no model, or the card there was edited.
    """
    model = find_model(path)
    before = read_card(model.folder)
    if before is not None and edited(before) and not force:
        raise UserError(
            f"{model.folder / CARD_NAME} was edited, and stays as it is; --force writes it anew and loses "
            "what was written there"
        )
    terms = check_terms(license, datasets, terms_of(before) if before else Terms())
    pictures = [file.relative_to(model.folder).as_posix() for file in model.pictures()]
    write_text_whole(model.folder / CARD_NAME, card_text(model, terms, pictures=pictures))
    return model.folder / CARD_NAME


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Options for what only the owner knows."""
    parser.add_argument(
        "--license", metavar="ID", help="licence as the Hub calls it: apache-2.0, cc-by-4.0, other, ... "
        "(default: what the card there says, else unknown)",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="ID", action="append", default=[],
        help="data set on the Hub that it was trained on, as user/name; may be repeated",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Write the card; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.share.card",
        description="Write a model card (README.md) into the folder of a run, a checkpoint or a bundle: "
        "task, network, data with hashes, IoU by class, pictures, parity, how to load, limits, versions, "
        "licence, with the metadata that the Hugging Face Hub reads. Nothing is uploaded.",
        epilog="example: protoseg card runs/cracks --license cc-by-4.0",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint folder or bundle folder")
    add_terms(parser)
    parser.add_argument("--force", action="store_true", help="write over a card that was edited")
    args = parser.parse_args(argv)

    def body() -> int:
        file = write_card(args.run, args.license, args.dataset, force=args.force)
        text = file.read_text(encoding="utf-8")
        sys.stdout.write(f"{file}\n")
        if terms_of(text).license == UNKNOWN:
            sys.stdout.write("licence: unknown; nobody knows what they may do with it: --license names one\n")
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
