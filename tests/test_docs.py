"""The documentation site and the project's papers: complete, true to the code, built without a warning."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
import yaml
from tiny import PROJECT_ROOT

import protoseg
from protoseg.cli.commands import COMMANDS
from protoseg.config.load import load_config
from protoseg.config.reference import describe_settings
from protoseg.config.sections import Config
from protoseg.errors import ConfigError

DOCS = PROJECT_ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
PAGES = [*sorted(DOCS.glob("*.md")), PROJECT_ROOT / "CONTRIBUTING.md", PROJECT_ROOT / "SECURITY.md"]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def navigation():
    """Pages of mkdocs.yml; its tags for Python names are read as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((PROJECT_ROOT / "mkdocs.yml").read_text(), Loader)
    assert config["theme"]["font"] is False, "the site asks no foreign host for fonts"

    def flatten(item):
        if isinstance(item, str):
            return [item]
        values = item.values() if isinstance(item, dict) else item
        return [page for value in values for page in flatten(value)]

    return flatten(config["nav"])


def test_the_nav_has_every_page_and_no_other(hooks):
    generated = set(hooks.ROOT_PAGES.values())
    pages = {path.name for path in DOCS.glob("*.md")} | generated
    pages |= {f"tutorials/{path.stem}.md" for path in NOTEBOOKS}
    found = navigation()
    assert len(found) == len(set(found))
    assert set(found) == pages
    for source in hooks.ROOT_PAGES:
        assert (PROJECT_ROOT / source).is_file()


@pytest.mark.parametrize(
    ("folder", "link", "expected"),
    [
        ("docs", "[a](../CONTRIBUTING.md#b)", "[a](contributing.md#b)"),
        ("docs", "[a](training.md)", "[a](training.md)"),
        ("docs", "[a](#b)", "[a](#b)"),
        ("docs", "[a](https://example.org/x#y)", "[a](https://example.org/x#y)"),
        ("docs", "[the file](../deploy/Dockerfile)", "the file (`deploy/Dockerfile`)"),
        ("docs", "[`LICENSE`](../LICENSE)", "`LICENSE`"),
        ("docs", "[start](../README.md)", "[start](index.md)"),
        ("", "[a](docs/serving.md#settings)", "[a](serving.md#settings)"),
        ("", "[a](SECURITY.md)", "[a](security.md)"),
        ("docs", "[a](tutorials/own_data.ipynb)", "[a](tutorials/own_data.md)"),
        ("docs/tutorials", "[a](../training.md#b)", "[a](../training.md#b)"),
        ("docs/tutorials", "[a](pictures.ipynb)", "[a](pictures.md)"),
        ("docs/tutorials", "[a](../../SECURITY.md)", "[a](../security.md)"),
    ],
)
def test_links_that_leave_the_site(hooks, folder, link, expected):
    assert hooks.rewrite_links(link, PurePosixPath(folder)) == expected


def settings():
    """Dotted names of all settings."""
    return set(re.findall(r"^  ([\w.]+)=", describe_settings(), re.M))


def wrong_settings(override):
    """Settings that do not fit; a rule between settings, which may ask for a second one, names none."""
    try:
        load_config(None, [override])
    except ConfigError as error:
        return re.findall(r"^  ([\w.]+):", str(error), re.M)
    return []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_settings_in_the_text_exist_and_take_the_values_shown(path):
    known = settings()
    sections = set(Config.model_fields)
    for name, value in re.findall(r"`((?:\w+\.)+\w+)(?:=([^`…]+))?`", path.read_text()):
        if name.split(".")[0] not in sections or name.endswith(".png"):
            continue
        assert name in known or any(key.startswith(f"{name}.") for key in known), f"{path.name}: {name}"
        if value:
            assert name not in wrong_settings(f"{name}={value}"), f"{path.name}: {name}={value}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_files_named_in_the_text_exist(path):
    folders = "configs|deploy|tests|benchmarks|protoseg|export|serving|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\w)`", path.read_text()):
        assert (PROJECT_ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, PROJECT_ROOT / "README.md"], ids=lambda p: p.name)
def test_commands_named_in_the_text_exist(path):
    for name in re.findall(r"(?:^|[`$|;&\"]|\\n) ?protoseg ([a-z][a-z-]*)\b", path.read_text(), re.M):
        assert name in COMMANDS, f"{path.name}: protoseg {name}"


def test_a_notebook_becomes_a_page_with_what_it_printed(hooks):
    image = base64.b64encode(b"picture").decode()
    notebook = {"cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "%%bash\nls", "outputs": [{"text": ["a\n", "b\n"]}]},
        {"cell_type": "code", "source": "x", "outputs": [
            {"data": {"text/html": "<figure></figure>", "text/plain": "<Result>"}},
            {"data": {"image/jpeg": image, "text/plain": "<Image>"}},
            {"data": {"text/plain": "1"}},
        ]},
    ]}  # fmt: skip
    text, pictures = hooks.notebook_page(notebook, "name.ipynb")
    assert pictures == {"name_0.jpeg": b"picture"}
    assert text.split("\n\n") == [
        "# Title\ntext",
        'This page is a notebook: <a href="../name.ipynb" download>name.ipynb</a>.',
        "```bash\nls\n```",
        "```text\na\nb\n```",
        "```python\nx\n```",
        "<figure></figure>",
        "![What the cell above shows](name_0.jpeg)",
        "```text\n1\n```\n",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_whole(path):
    assert path.stat().st_size < 400_000, "pictures as JPEG, no wider than 800 pixels"
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), (
        "run it: python -m benchmarks.tutorials"
    )
    assert "".join(code[0]["source"]).startswith("STEPS = ")
    printed = json.dumps([cell["outputs"] for cell in code])
    assert not re.search(r"Traceback|/(?:tmp|home|root)/|site-packages", printed)
    known = settings()
    for cell in cells:
        text = "".join(cell["source"])
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if cell["cell_type"] == "markdown" else []
        for target in links:
            assert "://" in target or (path.parent / target).exists(), target
        for name in re.findall(r"`((?:\w+\.)+\w+)(?:=[^`]+)?`", text):
            assert name.split(".")[0] not in Config.model_fields or name in known, name


def test_the_map_has_every_folder_and_no_other():
    text = (PROJECT_ROOT / "CONTRIBUTING.md").read_text()
    (tree,) = re.findall(r"```text\n(protoseg/.*?)```", text, re.S)
    shown, place = set(), []
    for indent, name in re.findall(r"^( *)([\w]+)/ ", tree, re.M):
        place = [*place[: len(indent) // 2], name]
        shown.add("/".join(place))
    packages = {
        str(path.parent.relative_to(PROJECT_ROOT))
        for package in ("protoseg", "export", "serving", "benchmarks")
        for path in (PROJECT_ROOT / package).rglob("__init__.py")
    }
    assert packages <= shown
    assert all((PROJECT_ROOT / name).is_dir() for name in shown)


def test_every_theme_of_troubleshooting_names_a_command_or_a_setting():
    text = (DOCS / "troubleshooting.md").read_text()
    answers = re.split(r"^### ", text, flags=re.M)[1:]
    assert len(answers) == 31
    for answer in answers:
        assert "`" in answer or "```" in answer, answer.splitlines()[0]


def test_the_citation_is_valid_and_up_to_date():
    found = yaml.safe_load((PROJECT_ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(found), "what the format demands"
    assert str(found["version"]) == protoseg.__version__
    assert found["license"] == "Apache-2.0"
    (paper,) = found["references"]
    assert paper["type"] == "conference-paper"
    assert [a["family-names"] for a in paper["authors"]] == ["Xu", "Liu", "Bian", "Yang"]
    assert paper["year"] == 2022
    bibtex = (PROJECT_ROOT / "README.md").read_text()
    assert paper["title"] in bibtex


def test_hooks_of_pre_commit_need_no_network():
    config = yaml.safe_load((PROJECT_ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    entries = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert entries == {"ruff", "lint-imports", "mypy"}
    assert all(hook["language"] == "system" for hook in repository["hooks"])


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='pip install -e ".[docs]"')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=PROJECT_ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "configuration" / "index.html").read_text()
    for name in settings():
        assert f"<code>{name}</code>" in page
    assert 'class="mermaid"' in (tmp_path / "site" / "contributing" / "index.html").read_text()
    assert not list((tmp_path / "site").glob("**/hooks.py"))
    for path in NOTEBOOKS:
        assert (tmp_path / "site" / "tutorials" / path.stem / "index.html").is_file()
        assert (tmp_path / "site" / "tutorials" / path.name).is_file(), "to download"
    for path in (tmp_path / "site").rglob("*.html"):
        assert "fonts.googleapis.com" not in path.read_text(), path
