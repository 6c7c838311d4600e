"""What mkdocs cannot do by itself: pages from notebooks and from files of the root, links out of docs/."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # links are tested where mkdocs is not installed, too
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files of the root."""
    from mkdocs.structure.files import File

    for source, page in ROOT_PAGES.items():
        text = rewrite_links((ROOT / source).read_text(encoding="utf-8"), PurePosixPath())
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        text, pictures = notebook_page(json.loads(path.read_text(encoding="utf-8")), path.name)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=data))
    return files


def notebook_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown with what its cells printed, and its pictures by file name.

    Forty lines instead of mkdocs-jupyter, which brings nbconvert, jupytext and a style of its own.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if len(parts) == 1:
                parts.append(f'This page is a notebook: <a href="../{name}" download>{name}</a>.')
            continue
        shell = source.removeprefix("%%bash\n")
        parts.append(f"```bash\n{shell}\n```" if shell != source else f"```python\n{source}\n```")
        for output in cell["outputs"]:
            found = output.get("data", {})
            text = "".join(output.get("text", found.get("text/plain", "")))
            if "text/html" in found:
                parts.append("".join(found["text/html"]))
            elif "image/jpeg" in found:
                picture = f"{PurePosixPath(name).stem}_{len(pictures)}.jpeg"
                pictures[picture] = base64.b64decode("".join(found["image/jpeg"]))
                parts.append(f"![What the cell above shows]({picture})")
            elif text.strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside docs/ into what the site has."""
    del config, files
    return rewrite_links(markdown, PurePosixPath("docs", page.file.src_uri).parent)


def rewrite_links(text: str, folder: PurePosixPath) -> str:
    """Links of a file in ``folder`` of the repository, as the site needs them.

    A page keeps its link; any other file of the repository, which the site does not have, is named in
    code font.
    """

    def replace(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = os.path.normpath(folder / target)
        page = {**ROOT_PAGES, "README.md": "index.md"}.get(path)
        if page is None and path.startswith("docs/"):
            page = re.sub(r"^(tutorials/\w+)\.ipynb$", r"\1.md", path.removeprefix("docs/"))
        if page is not None:
            # pages of the root lie beside those of docs/
            here = folder.relative_to("docs") if folder.parts else folder
            return f"[{label}]({PurePosixPath(os.path.relpath(page, here))}{anchor})"
        return f"`{path}`" if label.strip("`") in (path, target) else f"{label} (`{path}`)"

    return LINK.sub(replace, text)
