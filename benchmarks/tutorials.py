"""Run the notebooks of docs/tutorials and write what they print into them.

``python -m benchmarks.tutorials [NAME ...]`` with ``pip install -e ".[dev]"``; some minutes. The site shows
what was printed, a test runs them with fewer steps (``tests/test_tutorials.py``).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from protoseg.files import write_text_whole

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "tutorials"


def execute(path: Path, folder: Path, values: dict[str, str] | None = None, timeout: float = 600) -> Any:
    """Run a notebook in ``folder``, as someone who opened it there.

    Args:
        path: The notebook.
        folder: Its working folder.
        values: Expressions for names that its first code cell sets.
        timeout: Of one cell, in seconds.

    Returns:
        The notebook with its outputs (nbformat).

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in (values or {}).items():
        first.source, found = re.subn(rf"(?m)^{name} = .*", f"{name} = {value}", first.source)
        if found != 1:
            raise ValueError(f"{path.name}: its first cell sets {name} {found} times, expected once")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(_command_folder(folder)), os.environ["PATH"]]),
    }
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=timeout, record_timing=False, resources=resources)
    return client.execute(env=environment)


def _command_folder(folder: Path) -> Path:
    """Where ``protoseg`` is; in a checkout that is not installed, a script in the folder."""
    beside = Path(sys.executable).parent
    if (beside / "protoseg").exists():
        return beside
    script = folder / ".bin" / "protoseg"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m protoseg "$@"\n')
    script.chmod(0o755)
    return script.parent


def tidy(notebook: Any, folder: Path) -> None:
    """Drop what belongs to one machine or is shown twice: paths, progress bars, pictures beside HTML."""
    for number, cell in enumerate([cell for cell in notebook.cells if cell.cell_type == "code"], start=1):
        cell.execution_count = number
        kept: list[Any] = []
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "text/html" in output.get("data", {}):
                output.data.pop("image/png", None)
            if output.output_type != "stream":
                kept.append(output)
                continue
            if output.name == "stderr" and re.search(r"\r|TqdmWarning", output.text):
                continue
            # the kernel sends what a command prints in pieces
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                output.text = output.text.replace(str(folder), ".")
        cell.outputs = kept
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def main(argv: list[str] | None = None) -> None:
    """Run them; see the module's docstring."""
    import nbformat

    parser = argparse.ArgumentParser(prog="python -m benchmarks.tutorials", description=__doc__)
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    for name in parser.parse_args(argv).names or names:
        path, folder = FOLDER / f"{name}.ipynb", Path(tempfile.mkdtemp())
        try:
            notebook = execute(path, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        tidy(notebook, folder)
        write_text_whole(path, nbformat.writes(notebook, indent=1) + "\n")
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
