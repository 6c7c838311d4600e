"""Writes a commented configuration from a folder: ``python -m protoseg.init FOLDER``."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from protoseg.check.findings import Report
from protoseg.check.inspect import inspect
from protoseg.config.load import load_config
from protoseg.convert.find import find_format
from protoseg.convert.source import Tree
from protoseg.data.text import masks_needed
from protoseg.errors import DataError, guarded
from protoseg.files import write_text_whole
from protoseg.init.layout import Layout, find_layout, in_mask_folder
from protoseg.init.meaning import explain, look_at_masks, working_size
from protoseg.init.parts import (
    Parts,
    add_the_rest,
    by_folders,
    choose_validation,
    converted,
    find_lists,
    write_missing_lists,
)
from protoseg.init.write import config_text, crop_for, pretrained_line

_ANNOTATIONS = (".json", ".xml", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Draft:
    """What will be written."""

    data: dict[str, Any]
    doubts: dict[str, list[str]]
    remarks: list[str]
    parts: Parts | None
    """None where ``convert`` has made the lists."""
    images: list[Path]
    unlabeled: bool


def main(argv: list[str] | None = None) -> int:
    """Write the file, and print what was found; 1 when ``check`` would find errors. See ``--help``."""
    args = _parser().parse_args(argv)

    def body() -> int:
        if args.seed < 0:
            raise DataError(f"--seed must be at least 0, got {args.seed}")
        return _init(args)

    return guarded(body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.init",
        description="Write a commented configuration from a folder of images and masks, of lists, or from "
        "what protoseg convert made. Finds masks in a folder of their own or beside their images, parts by "
        "lists or by folders (train, val, test, unlabeled), class names in a file. What is not certain is "
        "printed, and stands in the file as a comment.",
        epilog="example: protoseg init photos && protoseg check --config my.yaml",
    )
    parser.add_argument("folder", type=Path, help="folder that holds all of it")
    parser.add_argument("-o", "--out", type=Path, default=Path("my.yaml"), help="file to write (%(default)s)")
    parser.add_argument("--masks", type=Path, help="folder of masks (default: found)")
    parser.add_argument(
        "--classes",
        help="names by id, split by commas, or a file of them (default: a class file that is found)",
    )
    parser.add_argument(
        "--val", default="20%", help="validation images where no part is called val: 30, 0.2 or 20%% (20%%)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of their choice (%(default)s)")
    parser.add_argument("--name", help="name of the run (default: the folder's)")
    return parser


def _init(args: argparse.Namespace) -> int:
    root, out = args.folder.expanduser().absolute(), args.out.expanduser()
    if not root.is_dir():
        raise DataError(f"{args.folder} is not a folder; give the folder that holds images and masks")
    if out.exists():
        raise DataError(f"{out} exists and is not overwritten; move it, or give another file with -o")
    made = converted(root)
    draft = _from_folder(root, args) if made is None else _from_conversion(root, made)
    lists = [] if draft.parts is None else write_missing_lists(draft.parts, _lists_folder(out), root)
    data = dict(draft.data)
    if draft.parts is not None:
        data |= {part: draft.parts.settings.get(part) for part in ("labeled", "unlabeled", "val")}
    size = working_size(draft.images)
    doubts = {key: list(texts) for key, texts in draft.doubts.items()}
    name = args.name or re.sub(r"[^A-Za-z0-9._-]+", "_", root.name).strip("._-") or "run"
    crop = crop_for(size or (512, 512))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(out, config_text(name, data, doubts, crop, size=size, unlabeled=draft.unlabeled))
    lines = [*draft.remarks, *(f"list written: {path}" for path in lists)]
    weights = pretrained_line()[1]
    lines += [f"CHECK {key}: {text}" for key, texts in doubts.items() for text in texts]
    lines += [f"CHECK model.pretrained: {weights}"] if weights else []
    report = inspect(load_config(out), quick=True)
    lines += _verdict(report, out)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if report.ok else 1


def _verdict(report: Report, out: Path) -> list[str]:
    command = f"protoseg check --config {shlex.quote(str(out))}"
    if report.ok:
        return [f"written: {out}", f"next: {command}"]
    return [
        *report.problem_lines(3),
        f"written: {out}, but it needs attention",
        f"next: edit it, then {command}",
    ]


def _lists_folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}_lists")


def _from_conversion(root: Path, data: dict[str, Any]) -> Draft:
    doubts: dict[str, list[str]] = {}
    for part in ("labeled", "val"):
        if data.get(part) is None:
            raise DataError(
                f"{root} has no {part}.txt: too few images were annotated for a training and a validation "
                "list; annotate more and convert again"
            )
    if data.get("unlabeled") is None:
        doubts["unlabeled"] = [
            "the export has no image without annotation; name a folder of further images here"
        ]
    base = Path(data["root"])
    lines = (base / data["labeled"]).read_text(encoding="utf-8").splitlines()
    classes = len(data["classes"])
    remarks = [f"{root}: made by protoseg convert, {len(lines)} labelled images, {classes} classes"]
    images = [base / line.split("\t")[0] for line in lines]
    return Draft(data, doubts, remarks, None, images, data.get("unlabeled") is not None)


def _from_folder(root: Path, args: argparse.Namespace) -> Draft:
    layout = find_layout(root, args.masks, [root / "runs", _lists_folder(args.out)])
    parts = find_lists(root) if args.masks is None else None
    if parts is not None:
        add_the_rest(parts, layout, root)
    elif layout.pairs:
        parts = by_folders(layout, root)
    else:
        raise DataError(_no_masks(root, layout))
    if not parts.labeled:
        raise DataError(
            f"the images with a mask below {root} are all for validation or testing; put some in a folder "
            "called train, or name them in a list labeled.txt"
        )
    values, present, faults = look_at_masks([*parts.labeled, *parts.val], progress=sys.stderr.isatty())
    if faults and not values:
        raise DataError(faults[0])
    if not parts.val:
        choose_validation(parts, present, args.val, args.seed, root)
    masks = [entry.mask for entry in parts.labeled if entry.mask is not None]
    meaning = explain(root, values, masks, args.classes)
    doubts = {key: list(texts) for key, texts in parts.doubts.items()}
    for key, texts in meaning.doubts.items():
        doubts.setdefault(key, []).extend(texts)
    if faults:
        doubts.setdefault("labeled", []).append(f"{len(faults)} mask(s) cannot be read: {faults[0]}")
    if not parts.unlabeled:
        doubts.setdefault("unlabeled", []).append(
            "every image has a mask; name a folder of further images here"
        )
    sizes = len(parts.labeled), len(parts.unlabeled), len(parts.val)
    total = "labelled {}, unlabelled {}, validation {} images".format(*sizes)
    remarks = [*layout.remarks, *parts.remarks, *meaning.remarks, total]
    data = {"root": str(root), **meaning.settings}
    images = [entry.image for entry in parts.labeled]
    return Draft(data, doubts, remarks, parts, images, bool(parts.unlabeled))


def _no_masks(root: Path, layout: Layout) -> str:
    """What to do without a mask."""
    annotations = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ANNOTATIONS)
    if annotations:
        try:
            tree_format = find_format(Tree(root))[0]
        except DataError:
            tree_format = ""
        what = f"annotations ({tree_format})" if tree_format else f"{annotations[0].name}"
        return f"{root} holds {what} and no mask; {masks_needed(root)}, and then: protoseg init DIR"
    if not layout.images:
        return f"no image was found below {root}"
    lossy = [
        path for path in layout.images if in_mask_folder(PurePosixPath(path.relative_to(root).as_posix()))
    ]
    if lossy:
        return (
            f"{lossy[0].parent} is called like a folder of masks, and its files, as {lossy[0].name}, are of "
            "a kind that cannot hold any: JPEG and the like change values. Export the masks as PNG"
        )
    few = min(len(layout.images), 20)
    return (
        f"{root} holds {len(layout.images)} images and no mask. A training learns what the classes look like "
        f"from a few masks: draw some ({few} of them, chosen at random, are a start) in a tool such as CVAT, "
        f"labelme or Label Studio, then: protoseg convert EXPORT --images {shlex.quote(str(root))} -o DIR && "
        f"protoseg init DIR. Or put masks with the names of their images in {root / 'masks'} and call this "
        "again; the images without a mask will be the unlabelled ones"
    )


if __name__ == "__main__":
    sys.exit(main())
