"""What can be checked of the deployment files without Docker, Prometheus or a cluster."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all((DEPLOY / name).read_text()) if d]


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    (found,) = [d for d in documents("kubernetes/protoseg.yaml") if d["kind"] == "Deployment"]
    container: dict[str, Any] = found["spec"]["template"]["spec"]
    return container


def test_settings_in_the_files_exist(deployment: dict[str, Any]) -> None:
    names = {item["name"]: item.get("value", "") for item in deployment["containers"][0]["env"]}
    names |= documents("compose.yaml")[0]["services"]["protoseg"]["environment"]
    names |= dict(re.findall(r"(PROTOSEG_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()))
    load_settings({k: re.sub(r"\$\{.*:-(.*)\}", r"\1", str(v)) for k, v in names.items()})


def test_containers_are_locked_down(deployment: dict[str, Any]) -> None:
    assert deployment["securityContext"]["runAsNonRoot"] is True
    assert deployment["enableServiceLinks"] is False
    container = deployment["containers"][0]["securityContext"]
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    service = documents("compose.yaml")[0]["services"]["protoseg"]
    assert service["read_only"] is True
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", dockerfile, re.M) == ["10001:10001"]
    assert "build-essential" not in dockerfile


def test_everything_that_is_written_lies_in_the_one_writable_folder(deployment: dict[str, Any]) -> None:
    """BentoML makes a temporary folder when it starts, which fails on a read-only ``/tmp``."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    written = dict(re.findall(r"(TMPDIR|BENTOML_HOME)=(\S+)", dockerfile))
    assert set(written) == {"TMPDIR", "BENTOML_HOME"}
    tmpfs = documents("compose.yaml")[0]["services"]["protoseg"]["tmpfs"]
    mounts = [m["mountPath"] for m in deployment["containers"][0]["volumeMounts"] if not m.get("readOnly")]
    for folders in (mounts, [item.split(":")[0] for item in tmpfs], re.findall(r"--tmpfs (\S+)", dockerfile)):
        assert folders == ["/home/protoseg"]
    assert all(Path(folder).is_relative_to("/home/protoseg") for folder in written.values())


def test_a_pod_has_time_to_drain(deployment: dict[str, Any]) -> None:
    settings = load_settings({})
    sleep = int(deployment["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert deployment["terminationGracePeriodSeconds"] > sleep + settings.drain + settings.timeout


def test_image_copies_what_the_service_needs() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.*) /app", dockerfile, re.M)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for source in " ".join(copied).split():
        assert list(ROOT.glob(source)), source
        assert any(fnmatch.fnmatch(source, item) for item in allowed), source


def packed(sources: list[str], folder: Path) -> None:
    """Copy what a packing file names (files or folders) to ``folder``."""
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, folder / source)


def test_the_service_imports_from_what_is_packed(tmp_path: Path) -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    sources = " ".join(re.findall(r"^COPY (?!--from)(.*) /app/\S+$", dockerfile, re.M)).split()
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    assert {item.rstrip("/") for item in bento} == {*sources, "runs/*/bundle"}
    packed(sources, tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        # an editable installation would lend what is missing
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        "import serving; serving.svc; import serving.check, export.runners.ort, export.runners.tensorrt\n"
        "print(sorted({'torch', 'accelerate', 'onnx'} & set(sys.modules)))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def metric_names() -> set[str]:
    from serving.worker.metrics import metrics

    found = set()
    for value in vars(metrics()).values():
        name = getattr(value, "_name", None)
        if name:
            found |= {name + suffix for suffix in ("", "_total", "_sum", "_count", "_bucket")}
    return found


def test_queries_use_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana/dashboards/protoseg.json").read_text())
    rules = documents("prometheus/rules.yml")[0]["groups"][0]["rules"]
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [rule["expr"] for rule in rules]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    for query in queries:
        for name in re.findall(r"\bprotoseg[:_][a-z_]+", query):
            assert name in metric_names() | recorded, name
    queue = yaml.safe_load((DEPLOY / "kubernetes/queue-metric.yaml").read_text())[0]
    (scaler,) = [d for d in documents("kubernetes/protoseg.yaml") if d["kind"] == "HorizontalPodAutoscaler"]
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == queue["name"]["as"]
    assert queue["name"]["as"] in metric_names()


def test_every_drift_that_rings_is_on_the_dashboard() -> None:
    board = json.loads((DEPLOY / "grafana/dashboards/protoseg.json").read_text())
    shown = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    rules = documents("prometheus/rules.yml")[0]["groups"][0]["rules"]
    alerts = {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}
    recorded = set(re.findall(r"protoseg:[a-z_]+", " ".join(alerts.values())))
    assert {"protoseg:class_psi", "protoseg:novel_fraction", "protoseg:novel_limit"} <= recorded
    for name in recorded:
        assert name in shown, name
    matched = re.findall(r'ALERTS\{alertname=~"([^"]+)"', shown)
    assert all(any(re.fullmatch(pattern, name) for pattern in matched) for name in alerts)


def test_queries_are_promql() -> None:
    """Prometheus refuses a file of rules in which one expression has a wrong type."""
    promql_parser = pytest.importorskip("promql_parser", reason='pip install -e ".[dev]"')
    board = json.loads((DEPLOY / "grafana/dashboards/protoseg.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [rule["expr"] for rule in documents("prometheus/rules.yml")[0]["groups"][0]["rules"]]
    assert len(queries) > 25
    for query in queries:
        promql_parser.parse(query)
    with pytest.raises(ValueError, match="expected type vector"):
        promql_parser.parse("clamp_min(2 * scalar(max(up)), 0.1)")


def test_dashboard_has_no_overlapping_panels() -> None:
    board = json.loads((DEPLOY / "grafana/dashboards/protoseg.json").read_text())
    cells = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells
                cells.add((x, y))


def test_documented_settings_exist() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    known = set(Settings.model_fields) | {"config", "api_key"}  # the last is of the client
    for name in re.findall(r"PROTOSEG_([A-Z_]+)(?![A-Z_]*\*)", text):
        assert not name or name.lower() in known, name
    for row in re.findall(r"^\| (`PROTOSEG_.*?) \|", text, re.MULTILINE):
        for name in re.findall(r"`(?:PROTOSEG)?_([A-Z_]+)`", row):
            assert name.lower() in known, name


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "serving").rglob("*.py"))
    codes = set(re.findall(r"ServingError\(\s*\d{3}, \"(\w+)\"", source))
    assert len(codes) > 20
    for code in codes:
        assert f"`{code}`" in text, code
