"""What mkdocs cannot do by itself: pages from files of the root, and links that leave docs/."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

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
    return files


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
        if path in ROOT_PAGES:
            return f"[{label}]({ROOT_PAGES[path]}{anchor})"
        if path == "README.md":
            return f"[{label}](index.md)"
        if path.startswith("docs/"):
            return f"[{label}]({path.removeprefix('docs/')}{anchor})"
        return f"`{path}`" if label.strip("`") in (path, target) else f"{label} (`{path}`)"

    return LINK.sub(replace, text)
