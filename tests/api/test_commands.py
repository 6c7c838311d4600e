"""The commands as functions: the same files, errors instead of exits, and nothing left behind."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, photo, tiny_config, tiny_info, tiny_segmenter

import protoseg
from protoseg import UserError
from protoseg.api.commands import Run, resolve_config
from protoseg.checkpoint import save_checkpoint
from protoseg.config.load import load_config
from protoseg.evaluate.__main__ import main as evaluate_main
from protoseg.evaluate.report import Evaluation
from protoseg.train import signals

SHORT = {**TINY, "train": {**TINY["train"], "max_steps": 2, "warmup_steps": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_checkpoint(folder / "checkpoint", tiny_segmenter(5), tiny_info(5), tiny_segmenter(5, seed=3).network)
    return folder


def test_settings_come_from_files_mappings_and_words(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"train": {"max_steps": 7}, "run": {"name": "a"}}))
    expected = load_config(str(file), ["train.seed=3"])
    assert resolve_config(file, {"train": {"seed": 3}}) == expected
    assert resolve_config(str(file), {"train.seed": 3}) == expected
    assert resolve_config({"train.max_steps": 7, "run": {"name": "a"}, "train": {"seed": 3}}, {}) == expected
    assert resolve_config(load_config(str(file)), {"train": {"seed": 3}}) == expected
    assert resolve_config(None, {}) == load_config("configs/quickstart.yaml")
    preset = load_config(None, ["method.preset=fixmatch"])
    assert resolve_config({"method": {"preset": "fixmatch"}}, {}) == preset
    assert resolve_config(preset, {"train.seed": 1}).method == preset.method
    for config, over, says in (
        (tmp_path / "absent.yaml", {}, "absent.yaml not found"),
        (file, {"train": {"max_stepz": 3}}, r"train\.max_stepz: unknown key"),
        ({"train": {"max_steps": 0}}, {}, "train.max_steps"),
        ({1: 2}, {}, "names as keys, got 1"),
    ):
        with pytest.raises(UserError, match=says):
            resolve_config(config, over)


@pytest.mark.parametrize("error", [None, UserError("no such data")])
def test_what_a_training_sets_up_is_taken_back(
    tmp_path: Path, monkeypatch: Any, capsys: Any, error: UserError | None
) -> None:
    """The loop itself is replaced: it ends without giving the signals back."""
    options = []

    def loop(config: Any, **given: Any) -> int:
        options.append(given)
        signals.Interrupt()
        logging.getLogger("protoseg").info("step 1")
        if error is not None:
            raise error
        return int(given["stopped_code"])

    monkeypatch.setattr("protoseg.train.loop.train", loop)
    # pytest's own handlers are a program's
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda self: bool(self.handlers))
    ours = logging.getLogger("protoseg")
    before = (ours.level, list(ours.handlers))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(UserError, match="no such data") if error else nullcontext():
        run = protoseg.train(SHORT, run={"dir": str(tmp_path)}, resume=True)
        assert (run.finished, run.metrics, run.miou) == (False, {}, {})
    assert capsys.readouterr().out == "step 1\n"
    assert [(item["resume"], item["own_logging"]) for item in options] == [(True, False)]
    assert (ours.level, list(ours.handlers)) == before
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    handler = logging.NullHandler()
    ours.addHandler(handler)
    with suppress(UserError):
        protoseg.train(SHORT, run={"dir": str(tmp_path)})
    ours.removeHandler(handler)
    assert capsys.readouterr().out == "", "the program has logging of its own"


@pytest.mark.slow
def test_training_leaves_signals_and_logging_alone(tmp_path: Path, capsys: Any) -> None:
    root, ours = logging.getLogger(), logging.getLogger("protoseg")
    before = (list(root.handlers), root.level, ours.level, list(ours.handlers))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    # accelerate keeps the first precision for the process; the second run has another one
    for precision in ("no", "bf16"):
        name = f"run-{precision}"
        run = protoseg.train(
            {**SHORT, "train.mixed_precision": precision}, run={"name": name, "dir": str(tmp_path)}
        )
        assert (run.folder, run.finished) == (tmp_path / name, True)
        assert set(run.miou) >= {"linear"}
        assert run.config.train.mixed_precision == precision
    with pytest.raises(UserError, match="lies in the folder of this run"):
        protoseg.train(SHORT, run={"name": "run-no", "dir": str(tmp_path)},
                       train={"start_from": str(tmp_path / "run-no")})  # fmt: skip
    assert (list(root.handlers), root.level, ours.level, list(ours.handlers)) == before
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert protoseg.load(run, device="cpu").info.name == "run-bf16"


@pytest.mark.slow
def test_training_in_a_thread_touches_no_signal(tmp_path: Path) -> None:
    before, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(
        target=lambda: found.append(protoseg.train(SHORT, run={"name": "t", "dir": str(tmp_path)}))
    )
    thread.start()
    thread.join()
    assert found[0].finished
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_stopped_run_says_so_and_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    where = {"name": "s", "dir": str(tmp_path)}
    config = tiny_config(train={"max_steps": 2, "warmup_steps": 1}, run=where)
    monkeypatch.setattr(signals.Interrupt, "requested", lambda *_, **__: True)
    stopped = protoseg.train(config)
    assert not stopped.finished
    assert stopped.metrics == {} or stopped.metrics["step"] == 1
    monkeypatch.undo()
    assert protoseg.train(config, resume=True).metrics["step"] == 2


def test_an_evaluation_is_the_commands(run: Path, tmp_path: Path, capsys: Any) -> None:
    found = protoseg.evaluate(run, heads=["linear"], boundary=False, device="cpu")
    assert isinstance(found, Evaluation)
    assert set(found.results) == {"teacher", "student"}
    assert found.json_path == run / "evaluation.json"
    assert found.confusion_path.is_file()
    written = found.json_path.read_text()
    capsys.readouterr()
    assert evaluate_main([str(run), "--heads", "linear", "--no-boundary", "--device", "cpu"]) == 0
    assert found.json_path.read_text() == written
    assert capsys.readouterr().out == f"{found}\n"
    elsewhere = protoseg.evaluate(
        run, heads=["fused"], boundary=False, student=False, split="labeled",
        data={"synthetic.num_labeled": 1},
        json_path=tmp_path / "x" / "a.json", confusion_path=tmp_path / "y" / "c.png", device="cpu",
    )  # fmt: skip
    assert elsewhere is not None
    assert elsewhere.results["teacher"].num_images == 1
    assert (tmp_path / "x" / "a.json").is_file()
    assert list(elsewhere.miou) == ["fused"]
    assert repr(elsewhere) == f"<Evaluation on labeled, step 1: mIoU fused {elsewhere.miou['fused']:.1%}>"


def test_what_a_notebook_shows_of_a_run_is_one_line() -> None:
    run = Run(Path("runs/a"), tiny_config(), {"step": 8, "val": {"miou": {"linear": 0.5}}}, finished=True)
    assert repr(run) == "<Run runs/a: finished, step 8; val mIoU linear 50.0%>"
    assert repr(Run(Path("b"), tiny_config(), {}, finished=False)) == "<Run b: stopped, step 0; val mIoU ->"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "test"}, "split must be one of val, labeled, got 'test'"),
        ({"heads": ["mean"]}, "heads must be one of linear, prototype, fused, got 'mean'"),
        ({"mode": "window"}, "mode must be one of whole, sliding, None"),
        ({"data": {"rot": "x"}}, "rot"),
    ],
)
def test_a_wrong_evaluation_is_told(run: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        protoseg.evaluate(run, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"precision": ["fp16", "x"]}, "unknown precision 'x'"),
        ({"outputs": ["depth"]}, "unknown output 'depth'"),
        ({"image": "int8"}, "image must be one of uint8, nhwc, float32"),
        ({"head": "mean"}, "head must be one of linear, prototype, fused, None"),
        ({"static": (1, 0, 4)}, "static must be"),
        ({"opset": 3}, "opset 3 is not supported"),
        ({"checkpoint": "absent"}, "no checkpoint at absent"),
    ],
)
def test_a_wrong_export_is_told(run: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        protoseg.export(**({"checkpoint": run} | options))


def test_an_export_that_is_not_proven_is_an_error(run: Path, monkeypatch: Any) -> None:
    from export import onnx

    class Rejected:
        servable, folder = False, run / "bundle.rejected"

        def reports(self) -> str:
            return "model.onnx: failed"

    monkeypatch.setattr(onnx, "export_checkpoint", lambda *_, **__: Rejected())
    with pytest.raises(UserError, match=r"model\.onnx: failed\nnot servable, kept in .*bundle\.rejected"):
        protoseg.export(run)


@pytest.mark.slow
def test_train_export_load_in_one_process(tmp_path: Path) -> None:
    run = protoseg.train(TINY, run={"name": "a", "dir": str(tmp_path)})
    bundle = protoseg.export(run, precision=["fp32", "int8-cpu"], outputs=["agreement", "logits_stride"])
    assert bundle.folder == tmp_path / "a" / "bundle"
    assert bundle.parity["model.onnx"] == "passed"
    assert "model.onnx" in bundle.table()
    assert repr(bundle).startswith(f"<Exported {bundle.folder}: model.onnx passed, ")
    image = protoseg.load(run, device="cpu")
    with protoseg.load(bundle, device="cpu") as served:
        assert served.metrics == image.metrics
        for seed in range(4):
            one, other = served(photo(seed)), image(photo(seed))
            assert (one.labels == other.labels).mean() > 0.999
            assert abs(one.confidence - other.confidence).max() < 1e-4
    again = protoseg.export(run, tmp_path / "elsewhere", head="linear")
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()
    assert again.manifest.graph.head == "linear"
