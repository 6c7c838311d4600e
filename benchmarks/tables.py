"""Put the figures of ``benchmarks/results`` into the tables of the documents, or check that they are there.

    python -m benchmarks.tables            # write every block
    python -m benchmarks.tables --check    # exit 1 when a document says something else than the results

Documents are README.md, benchmarks/README.md and docs/*.md. A block lies between a line
``<!-- results:NAME -->`` and a line ``<!-- /results -->``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy.records import write_whole
from benchmarks.common import ROOT
from benchmarks.table_blocks import TABLES, Result, Table, table

BLOCK = re.compile(r"^<!-- results:([\w-]+) -->\n(.*?)^<!-- /results -->$", re.S | re.M)
OPENING = re.compile(r"^<!-- results:", re.M)
NAMED_RESULT = re.compile(r"results/([\w-]+\.json)")
LINK = re.compile(r"\]\(((?:docs|benchmarks)/[^)]+)\)")

# what each result file answers, in the order of the index
QUESTIONS = {
    "accuracy_camvid": "methods and label counts on CamVid, at equal steps and at equal cost",
    "accuracy_camvid_cpu": "the 46-label part of it, trained on CPUs",
    "accuracy_camvid_steps": "the same methods with six times the steps",
    "accuracy_camvid_views": "mild and usual strong views on CamVid, 23 and 92 labels",
    "accuracy_camvid_long": "how far labels alone go: supervised, 1,300 steps, 46 and all 367 labels",
    "accuracy_quickstart": "methods on the embedded scenes",
    "accuracy_quickstart_gpu": "six of the seeds, trained on a GPU",
    "accuracy_nuclei": "methods on nuclei with 24 labels",
    "accuracy_camvid_ablations": "one change at a time from `protoseg`",
    "trust_camvid": "which score finds wrong pixels, and ranks images by their error",
    "trust_camvid_weights": "the same for a checkpoint trained with class weights",
    "trust_camvid_stages": "the same for the study's `protoseg`, 1,300 and 200 steps",
    "suggest_study": "suggested against random labels, CamVid, 23 + 23",
    "train_step": "how long a training step takes on one CPU thread, against earlier code and with bfloat16",
    "prototype_branch_camvid": "what the prototype branch costs, CamVid configuration",
    "prototype_branch_pcr513": "the same for the paper's network at 513x513, B = 2",
    "export_accuracy": "accuracy of the exported files",
    "export_latency": "latency on a CPU: torch, ONNX Runtime fp32 and int8",
    "export_latency_avx2": "the same on a processor without VNNI, an earlier network",
    "gpu_latency": "latency on a GPU: torch, ONNX Runtime on CUDA, fp32 and fp16",
    "export_matrix": "which network, precision and runtime passes parity",
    "serving_speed": "served against bare `session.run`, stock BentoML, FastAPI + torch",
    "gpu_serving": "requests per second on a GPU, with and without batches, and on the CPU beside it",
    "serving_attacks": "hostile requests before and after",
    "serving_decoder": "10,000 damaged images through the decoder",
    "serving_soak": "memory and answers under load",
}
COMMANDS = {
    "accuracy_camvid": "python -m benchmarks.accuracy benchmarks/studies/camvid.yaml",
    "accuracy_camvid_long": "python -m benchmarks.accuracy benchmarks/studies/camvid_long.yaml",
    "accuracy_quickstart": "python -m benchmarks.accuracy benchmarks/studies/quickstart.yaml",
    "accuracy_nuclei": "python -m benchmarks.accuracy benchmarks/studies/nuclei.yaml",
    "accuracy_camvid_ablations": "python -m benchmarks.accuracy benchmarks/studies/camvid_ablations.yaml",
    "suggest_study": "python -m benchmarks.suggest_study --set method.preset=supervised --steps 400",
    "accuracy_camvid_views": "python -m benchmarks.accuracy benchmarks/studies/camvid_views.yaml",
    "train_step": "python -m benchmarks.train_step",
    "export_matrix": "python -m benchmarks.export_matrix",
    "gpu_serving": "python -m benchmarks.gpu_serving BUNDLE",
}
# these files keep the command of their last part; the index shows the whole one
MADE_IN_PARTS = frozenset({"export_matrix"})


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


def source_line(entry: Table, found: list[Result]) -> str:
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


def make_block(name: str, results: Path) -> str:
    """The Markdown of a block, with links relative to the project's root.

    Raises:
        TableError: If there is no such block, or a result file lacks what it needs.
    """
    if name == "index":
        return index(results)
    entry = TABLES.get(name)
    if entry is None:
        raise TableError(f"no table has this name; there are index, {', '.join(TABLES)}")
    found = [result for item in entry.results if (result := read_result(results, item)) is not None]
    if len(found) < len(entry.results):
        return f"Not measured yet; made by `{entry.command}`."
    try:
        return f"{entry.make(*found)}\n\n{source_line(entry, found)}"
    except (KeyError, IndexError, TypeError, ValueError) as error:
        files = ", ".join(f"{item}.json" for item in entry.results)
        raise TableError(
            f"{files} lacks what the table shows ({type(error).__name__}: {error}); make it again with "
            f"`{entry.command}`, or adapt benchmarks/table_blocks.py"
        ) from error


def index(results: Path) -> str:
    """All result files: question, command, file, date, machine."""
    there = {path.stem for path in results.glob("*.json")}
    rows = []
    for name in [*QUESTIONS, *sorted(there - set(QUESTIONS))]:
        result = read_result(results, name)
        question = QUESTIONS.get(name, name.replace("_", " "))
        if result is None:
            if name in COMMANDS:
                rows.append([question, f"`{COMMANDS[name]}`", "not measured yet", "", ""])
            continue
        file = f"[{name}.json](benchmarks/results/{name}.json)"
        words = machine_words(result["machine"])
        command = COMMANDS[name] if name in MADE_IN_PARTS else result["command"]
        rows.append([question, f"`{command}`", file, result["date"], words])
    return table(["question", "command", "result", "date", "machine"], rows)


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
        name, old = match[1], match[2]
        try:
            block = relative_links(make_block(name, results), document, root) + "\n"
        except TableError as error:
            problems.append(f"{place}, results:{name}: {error}")
            return match[0]
        if block != old:
            problems.append(
                f"{place}, results:{name}: says something else than benchmarks/results; run "
                "python -m benchmarks.tables"
            )
        return f"<!-- results:{name} -->\n{block}<!-- /results -->"

    filled = BLOCK.sub(replace, text)
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        problems.append(f"{place}: a <!-- results:NAME --> line is not closed by <!-- /results -->")
    for name in dict.fromkeys(NAMED_RESULT.findall(filled)):
        if not (results / name).is_file():
            problems.append(f"{place}: names benchmarks/results/{name}, which does not exist")
    return filled, problems


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 on a difference")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    root = arguments.root.absolute()
    results = root / "benchmarks" / "results"
    failures = []
    for document in documents(root):
        filled, problems = fill(document, root, results)
        if not arguments.check and filled != document.read_text(encoding="utf-8"):
            write_whole(document, filled)
            print(f"wrote {document.relative_to(root)}")
            filled, problems = fill(document, root, results)
        failures += problems
    for problem in failures:
        sys.stderr.write(f"error: {problem}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
