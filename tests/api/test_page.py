"""docs/api.md: its blocks run, and it names everything that results and models have."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tiny import PROJECT_ROOT, TINY, photo

import protoseg
from benchmarks.serving_server import Server
from export.onnx import Exported
from protoseg.api.commands import Run
from protoseg.api.explanation import Explanation
from protoseg.evaluate.report import Evaluation
from protoseg.explain.make import Made
from protoseg.novelty.make import FittedNovelty

PAGE = (PROJECT_ROOT / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(
    "kind",
    [
        protoseg.Model,
        protoseg.Bundle,
        protoseg.Result,
        Explanation,
        Run,
        Evaluation,
        Exported,
        FittedNovelty,
        Made,
    ],
)
def test_the_page_names_every_attribute(kind: Any) -> None:
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    private = {"load_image", "load_thumbnails", "draw"}
    names = {name for name in {*vars(kind), *fields} if not name.startswith("_")} - private
    assert names
    for name in names:
        assert re.search(rf"[`.]{name}[`(]", PAGE), name


@pytest.mark.slow
def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(yaml.safe_dump(TINY))
    Image.fromarray(photo(1, 64, 96)).save("photo.jpg")
    Path("photos").mkdir()
    for number in range(3):
        Image.fromarray(photo(number)).save(f"photos/{number}.png")
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if "127.0.0.1:3000" not in block:
            exec(compile(block, "docs/api.md", "exec"), names)
            continue
        with Server({"PROTOSEG_MODEL": str(tmp_path / "runs" / "cracks" / "bundle")}) as server:
            server.wait_ready()
            exec(compile(block.replace("http://127.0.0.1:3000", server.url), "docs/api.md", "exec"), names)
    expected = protoseg.load("runs/cracks/bundle")("photo.jpg").labels
    assert (names["remote"].labels == expected).all()
    assert sorted(path.name for path in Path("out/masks").iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
        "photo.png",
    ]
    assert names["run"].metrics["step"] == 8
    assert names["why"].prototype.index == names["remote"].explain(20, 30).prototype.index
    assert names["with_fox"].names[-1] == "fox"
