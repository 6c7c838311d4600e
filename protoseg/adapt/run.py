"""One change from a checkpoint to a run folder: what the command and ``protoseg.adapt`` do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from accelerate import PartialState

from protoseg.adapt.adapt import Adapted, Change, Kind, adapt
from protoseg.adapt.atlas import carried_atlas
from protoseg.adapt.measure import compare, format_comparison
from protoseg.adapt.write import write_adapted
from protoseg.checkpoint import CHECKPOINT_DIR, Checkpoint, load_checkpoint
from protoseg.data.classes import parse_color
from protoseg.errors import ConfigError, DataError
from protoseg.explain.atlas import ATLAS_NAME
from protoseg.explain.make import atlas_folder
from protoseg.inference import usable_device


def change_of(options: Mapping[str, Any]) -> Change:
    """What options ask for, called as those of the command are; None is one that was not given.

    Raises:
        ConfigError: If they do not go together.
    """
    kinds: list[Kind] = [kind for kind in get_args(Kind) if options[kind] is not None]
    if len(kinds) != 1:
        raise ConfigError(
            f"say one change, got {' and '.join(kinds) or 'none'}; there are {', '.join(get_args(Kind))}"
        )
    (kind,) = kinds
    given = options[kind]
    name, other = (given, "") if isinstance(given, str) else given
    for option in ("images", "masks", "value"):
        if kind not in ("add", "mend") and options[option] is not None:
            raise ConfigError(f"--{option} has no meaning with --{kind}; leave it out")
    color = options["color"]
    if color is not None and kind != "add":
        raise ConfigError(f"--color has no meaning with --{kind}; leave it out")
    if color is not None:
        color = parse_color(color if isinstance(color, str) else ",".join(map(str, color)), "--color")
    return Change(
        kind, name, other, images=options["images"], masks=options["masks"], value=options["value"],
        color=color, others=options["others"], other_images=options["other_images"],
    )  # fmt: skip


def change_checkpoint(
    checkpoint: str | os.PathLike[str],
    wanted: Change,
    out: Path | None,
    *,
    val: Path | None = None,
    device: str | None = None,
    say: Callable[[str], object],
) -> None:
    """Change, measure, write.

    Args:
        checkpoint: Run folder, checkpoint folder, or a file in it.
        wanted: The change.
        out: Run folder for the changed network; None writes nothing.
        val: List of ``image mask`` lines to measure on, before and after.
        device: ``cpu``, ``cuda``, ...; None takes what accelerate finds.
        say: Called with each line for the user, without its end.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    if out is not None and (out / CHECKPOINT_DIR).exists():
        raise ConfigError(f"{out} holds a checkpoint already; name another folder with -o")
    source = load_checkpoint(Path(checkpoint))
    source.segmenter.to(usable_device(device) if device else PartialState().device)
    start = time.perf_counter()
    found = adapt(source, wanted, source.info.name if out is None else out.absolute().name)
    seconds = time.perf_counter() - start
    found.checkpoint.segmenter.to(source.segmenter.bank.prototypes.device)
    for line in [*found.notes, told(source, found, wanted, seconds)]:
        say(line)
    comparison = None
    if val is not None:
        comparison = compare(source, found.checkpoint, val)
        say(f"\n{format_comparison(comparison)}\n")
    if out is None:
        say("nothing was written (--dry-run)")
        return
    for line in write_adapted(out, source, found, comparison):
        say(line)
    try:
        atlas = carried_atlas(out, source, found)
    except DataError as error:  # of the network before: the changed one is whole without
        say(f"no atlas: {error}")
        atlas = None
    if atlas is not None:
        say(f"atlas       {atlas}")
    had = (atlas_folder(source.path) / ATLAS_NAME).is_file()
    again = ["explain"] if had and atlas is None else []
    again += ["novelty"] if source.segmenter.novelty is not None else []
    if again:
        commands = " and ".join(f"protoseg {name} {out}" for name in again)
        say(f"next: {commands}: what {source.info.name} has of that belongs to its weights")


def told(source: Checkpoint, found: Adapted, wanted: Change, seconds: float) -> str:
    """What was done, in a line."""
    names = [item.name for item in found.checkpoint.info.classes]
    done = {
        "add": f"{wanted.name} added as class {found.label} from {len(found.given)} images",
        "mend": f"{wanted.name} mended from {len(found.given)} images",
        "merge": f"{wanted.other} merged into {wanted.name}, class {found.label}",
        "remove": f"{wanted.name} removed",
        "rename": f"{wanted.name} renamed to {wanted.other}",
    }[wanted.kind]
    part = f" ({found.other_seconds:.1f} s of them for the other images)" if found.other_seconds else ""
    before = f"{source.info.name} had {len(source.info.classes)} classes"
    return f"{done} in {seconds:.1f} s{part}; {before}, now there are {len(names)}"
