"""Put figures and settings into the tables of the documents, or check that they are there.

    python -m benchmarks.tables            # write every block
    python -m benchmarks.tables --check    # exit 1 when a document says something else

Documents are README.md, benchmarks/README.md and docs/*.md. A block lies between a line
``<!-- results:NAME -->`` and a line ``<!-- /results -->``, and is made from ``benchmarks/results`` by the
benchmark that owns it; or between ``<!-- settings:NAME -->`` and ``<!-- /settings -->``, from the classes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Answer, Block, Result, markdown_table, parser
from protoseg.config import reference
from protoseg.files import write_text_whole
from serving.settings import PREFIX, Settings

BLOCK = re.compile(r"^<!-- (results|settings):([\w-]+) -->\n(.*?)^<!-- /\1 -->$", re.S | re.M)
OPENING = re.compile(r"^<!-- (results|settings):", re.M)
NAMED_RESULT = re.compile(r"results/([\w-]+\.json)")
LINK = re.compile(r"\]\(((?:docs|benchmarks)/[^)]+)\)")

# modules of this package that say what their result files answer (ANSWERS) and make tables of them (BLOCKS),
# in the order of the index; importing one must not import torch
OWNERS = (
    "accuracy.tables", "trust.__main__", "suggest_study.tables", "novelty.__main__", "adapt",
    "explain", "prototype_count", "train_step", "communication", "prototype_branch", "export_accuracy",
    "export_latency", "cpu_runtimes", "taught", "gpu_latency", "export_matrix", "serving_speed",
    "predict_speed", "large_sets", "gpu_serving", "serving_attacks", "serving_soak",
)  # fmt: skip
ANSWERS: dict[str, Answer] = {}
BLOCKS: dict[str, Block] = {}
for _owner in OWNERS:
    _module = importlib.import_module(f"benchmarks.{_owner}")
    ANSWERS |= _module.ANSWERS
    BLOCKS |= getattr(_module, "BLOCKS", {})
SETTINGS: dict[str, Callable[[], str]] = {
    "presets": reference.preset_table,
    "training": reference.training_tables,
    "service": lambda: reference.model_table(Settings, "variable", PREFIX, upper=True),
}


class TableError(ValueError):
    """A block that cannot be made; the text says why."""


def read_result(results: Path, name: str) -> Result | None:
    """A result file, or None where there is none.

    Raises:
        TableError: If it is damaged.
    """
    path = results / f"{name}.json"
    try:
        found: Result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TableError(f"{path.name} is not JSON ({error}); make it again") from error
    return found


def machine_words(machine: dict[str, Any]) -> str:
    """A machine in a few words."""
    processor = re.sub(r"\((R|TM)\)|Processor|CPU", "", str(machine.get("processor") or "unknown processor"))
    gpu = str(machine["gpu"]).split(", driver")[0] + ", " if machine.get("gpu") else ""
    return (
        f"{gpu}{' '.join(processor.split())}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB"
    )


def source_line(entry: Block, found: list[Result]) -> str:
    """Where a block's figures come from: files, machine, versions, date."""
    files = ", ".join(f"[{name}.json](benchmarks/results/{name}.json)" for name in entry.results)
    machines = list(dict.fromkeys(
        machine_words(item) for result in found for item in result.get("machines", [result["machine"]])
    ))  # fmt: skip
    packages = ", ".join(
        f"{name} {' and '.join(versions)}"
        for name in entry.packages
        if (versions := dict.fromkeys(r["versions"][name] for r in found if name in r["versions"]))
    )
    dates = ", ".join(dict.fromkeys(result["date"] for result in found))
    return f"<sub>{files}; {'; '.join(machines)}; {packages}; {dates}.</sub>"


def make_block(kind: str, name: str, results: Path) -> str:
    """The Markdown of a block, with links relative to the project's root.

    Raises:
        TableError: If there is no such block, or a result file lacks what it needs.
    """
    if kind == "settings":
        if name not in SETTINGS:
            raise TableError(f"no table of settings has this name; there are {', '.join(SETTINGS)}")
        return SETTINGS[name]().rstrip("\n")
    if name == "index":
        return index(results)
    entry = BLOCKS.get(name)
    if entry is None:
        raise TableError(f"no table has this name; there are index, {', '.join(BLOCKS)}")
    found = {item: read_result(results, item) for item in entry.results}
    if absent := dict.fromkeys(ANSWERS[item].command for item, result in found.items() if result is None):
        return f"Not measured yet; made by {' and '.join(f'`{command}`' for command in absent)}."
    there = [result for result in found.values() if result is not None]
    try:
        return f"{entry.make(*there)}\n\n{source_line(entry, there)}"
    except (KeyError, IndexError, TypeError, ValueError) as error:
        files = ", ".join(f"{item}.json" for item in entry.results)
        commands = " and ".join(f"`{ANSWERS[item].command}`" for item in entry.results)
        raise TableError(
            f"{files} lacks what the table shows ({type(error).__name__}: {error}); make it again with "
            f"{commands}, or adapt {getattr(entry.make, 'func', entry.make).__module__}"
        ) from error


def index(results: Path) -> str:
    """All result files: question, command, file, date, machine."""
    rows = []
    for name in [*ANSWERS, *sorted({path.stem for path in results.glob("*.json")} - set(ANSWERS))]:
        answer = ANSWERS.get(name, Answer(name.replace("_", " "), ""))
        result = read_result(results, name)
        if result is None:
            rows.append([answer.question, f"`{answer.command}`", "not measured yet", "", ""])
            continue
        file = f"[{name}.json](benchmarks/results/{name}.json)"
        command = answer.command if answer.in_parts else result["command"]
        rows.append([answer.question, f"`{command}`", file, result["date"], machine_words(result["machine"])])
    return markdown_table(["question", "command", "result", "date", "machine"], rows)


def relative_links(text: str, document: Path, root: Path) -> str:
    """Links from the root, as seen from the document's folder."""
    return LINK.sub(lambda m: f"]({os.path.relpath(root / m[1], document.parent)})", text)


def documents(root: Path) -> list[Path]:
    """Files that may hold blocks."""
    named = [root / "README.md", root / "benchmarks" / "README.md"]
    return [path for path in [*named, *sorted((root / "docs").glob("*.md"))] if path.is_file()]


def fill(document: Path, root: Path, results: Path) -> tuple[str, list[str]]:
    """A document with its blocks as the results have them, and what was wrong with it."""
    text = document.read_text(encoding="utf-8")
    place = document.relative_to(root)
    problems = []

    def replace(match: re.Match[str]) -> str:
        kind, name, old = match.groups()
        try:
            block = relative_links(make_block(kind, name, results), document, root) + "\n"
        except TableError as error:
            problems.append(f"{place}, {kind}:{name}: {error}")
            return match[0]
        if block != old:
            source = "benchmarks/results" if kind == "results" else "the code"
            problems.append(
                f"{place}, {kind}:{name}: says something else than {source}; run python -m benchmarks.tables"
            )
        return f"<!-- {kind}:{name} -->\n{block}<!-- /{kind} -->"

    filled = BLOCK.sub(replace, text)
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        problems.append(f"{place}: a <!-- results:NAME --> or settings line is not closed by its <!-- / -->")
    for name in dict.fromkeys(NAMED_RESULT.findall(filled)):
        if not (results / name).is_file():
            problems.append(f"{place}: names benchmarks/results/{name}, which does not exist")
    return filled, problems


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.tables")
    command.add_argument("--check", action="store_true", help="change nothing, exit 1 on a difference")
    command.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = command.parse_args(argv)
    root = arguments.root.absolute()
    results = root / "benchmarks" / "results"
    failures = []
    for document in documents(root):
        filled, problems = fill(document, root, results)
        if not arguments.check and filled != document.read_text(encoding="utf-8"):
            write_text_whole(document, filled)
            print(f"wrote {document.relative_to(root)}")
            filled, problems = fill(document, root, results)
        failures += problems
    for problem in failures:
        sys.stderr.write(f"error: {problem}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
