"""``import protoseg``: what it names, what it imports, and that a subpackage can be called."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from types import ModuleType

import pytest
from tiny import PROJECT_ROOT, quiet_environment

import protoseg
from protoseg.api import commands

HEAVY = ("torch", "numpy", "pydantic", "PIL", "cv2", "onnxruntime", "bentoml", "httpx", "accelerate")


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=quiet_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_imports_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import protoseg; dir(protoseg); "
    program += "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    assert run(program) == "protoseg"


def test_errors_need_no_more_than_the_standard_library() -> None:
    program = f"from protoseg import UserError; import sys; print(*set({HEAVY!r}) & set(sys.modules))"
    assert run(program) == ""


def test_the_face_is_what_dir_the_stub_and_all_say() -> None:
    stub = ast.parse((PROJECT_ROOT / "protoseg" / "__init__.pyi").read_text())
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed | {"__version__"} == set(protoseg.__all__) == set(dir(protoseg))
    for name in protoseg.__all__:
        assert getattr(protoseg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'; it has __version__, load, "):
        protoseg.lod  # noqa: B018
    with pytest.raises(ImportError):
        from protoseg import lod  # noqa: F401


@pytest.mark.parametrize("first", ["", "import protoseg.train.__main__, protoseg.evaluate.metrics"])
def test_a_subpackage_is_a_function_whatever_was_imported_before(first: str) -> None:
    program = f"""
{first}
import protoseg
import protoseg.api.commands as commands
called = []
for name in ("train", "evaluate", "adapt", "explain", "novelty"):
    setattr(commands, name, lambda *a, _name=name, **k: called.append((_name, a, k)))
protoseg.train(1, two=2)
protoseg.evaluate(3)
protoseg.adapt(4), protoseg.explain(5), protoseg.novelty(6)
from protoseg import evaluate, train
import protoseg.train as again
again(1, two=2)
import protoseg.train.__main__ as main, protoseg.evaluate.metrics as metrics
assert train is protoseg.train is again and evaluate is protoseg.evaluate
others = [("adapt", (4,), {{}}), ("explain", (5,), {{}}), ("novelty", (6,), {{}})]
trained = ("train", (1,), {{"two": 2}})
assert called == [trained, ("evaluate", (3,), {{}}), *others, trained]
import protoseg.explain.reasons
assert main.parse_arguments and metrics
"""
    run(program)


def test_a_called_subpackage_shows_the_functions_signature() -> None:
    for name in ("train", "evaluate", "adapt", "explain", "novelty"):
        module = getattr(protoseg, name)
        assert isinstance(module, ModuleType)
        assert inspect.signature(module) == inspect.signature(getattr(commands, name))


def test_the_package_export_is_another_thing() -> None:
    program = "import export, protoseg; f = protoseg.export; import export.bundle; "
    run(program + "assert export.bundle and callable(f) and f is protoseg.export and f is not export")


def test_the_types_are_shipped() -> None:
    for package in ("protoseg", "export", "serving"):
        assert (PROJECT_ROOT / package / "py.typed").is_file()


@pytest.mark.slow
def test_a_type_checker_knows_the_face(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "user.py").write_text(
        "import protoseg\n"
        "from protoseg import Bundle, Model, Result, Segmenter, UserError, load\n"
        "import protoseg.train.signals\n"
        "run = protoseg.train('a.yaml', resume=True)\n"
        "reveal_type(run.folder)\n"
        "reveal_type(load(protoseg.export(run))('a.jpg'))\n"
        "reveal_type(load('x')(['a.jpg']))\n"
        "protoseg.evaluate(run, split='test')\n"
        "import serving\n"
        "reveal_type(serving.Client('x')(b'', explain=True))\n"
        "reveal_type(protoseg.adapt(run, 'out', remove='a'))\n"
        "reveal_type(load('x')('a.jpg', explain=True).explain(1, 2).prototype.doubts)\n"
        "reveal_type(protoseg.novelty(run).false_alarms)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "", str(tmp_path / "user.py")],
        cwd=PROJECT_ROOT, env=quiet_environment(), capture_output=True, text=True,
    )  # fmt: skip
    said = [line.split("user.py:")[1] for line in done.stdout.splitlines() if "user.py:" in line]
    assert len(said) == 8, done.stdout
    assert 'Revealed type is "pathlib.Path"' in said[0]
    assert 'Revealed type is "protoseg.api.result.Result"' in said[1]
    assert 'list[protoseg.api.result.Result]"' in said[2]
    assert 'Revealed type is "protoseg.api.result.Result"' in said[4]
    assert "protoseg.api.segmenter.Segmenter" in said[5]
    assert "list[" in said[6]
    assert "dict[" in said[7]
    assert 'Argument "split" to "evaluate" has incompatible type' in said[3]
