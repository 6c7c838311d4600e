"""Teachers from outside, held-out labels and rare classes, in whole runs and by hand."""

import json
import math
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from tiny import TINY, tiny_config

from protoseg.checkpoint import load_checkpoint
from protoseg.config.data import SyntheticConfig
from protoseg.config.ignored import ignored_settings
from protoseg.config.plan import make_schedule
from protoseg.data.stream import StreamSampler
from protoseg.data.synthetic import write_dataset
from protoseg.errors import ConfigError, DataError
from protoseg.predict.__main__ import main as predict
from protoseg.train.__main__ import main
from protoseg.train.labeled import hold_out, rare_class_picker
from protoseg.train.log import read_metrics

MEASURED = ["pseudo_labels.target_precision=0.4", "pseudo_labels.calibration=class"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with scenes as files, a configuration that reads them, and a supervised run ``large``."""
    folder = tmp_path_factory.mktemp("teacher")
    scenes = folder / "scenes"
    write_dataset(SyntheticConfig(num_labeled=4, num_unlabeled=6, num_val=2, height=40, width=48), scenes)
    lists = {
        split: str(next(scenes.rglob(f"{split}.txt")).relative_to(scenes))
        for split in ("labeled", "unlabeled", "val", "classes")
    }
    raw = {key: dict(value) for key, value in TINY.items()} | {
        "data": {"kind": "files", "root": str(scenes), **lists},
        "run": {"name": "tiny", "dir": str(folder / "runs")},
    }
    raw["train"] |= {"max_steps": 6, "save_every": 2, "eval_every": 6, "keep_states": 3}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    assert train(folder, "large", "method.preset=supervised", "model.architecture=unet",
                 "model.decoder_channels=null") == 0  # fmt: skip
    return folder


def train(folder, name, *arguments):
    return main(["--config", str(folder / "tiny.yaml"), f"run.name={name}", *arguments])


def weights(run):
    return safetensors.torch.load_file(run / "checkpoint" / "model.safetensors")


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


@pytest.mark.slow
def test_a_teacher_of_another_network_labels_is_recorded_and_stays_outside(place, capsys):
    large = f"pseudo_labels.teacher={place / 'runs' / 'large'}"
    before = weights(place / "runs" / "large")
    arguments = [large, "pseudo_labels.teacher_size=[64,64]", *MEASURED]
    assert train(place, "taught", *arguments) == 0
    out = capsys.readouterr().out
    assert "pseudo-labels come from" in out
    assert "unet on test_resnet, step 6, linear head), weak views at 64x64" in out
    assert "measured on 4 labelled images: temperature" in out
    assert "trained on the same labelled images" in out
    run = place / "runs" / "taught"
    info = load_checkpoint(run).info
    assert info.teacher["sha256"] == load_checkpoint(place / "runs" / "large").info.weights_sha256
    assert len(info.teacher["temperature"]) == 5
    assert f"threshold {info.teacher['threshold']:.2f}" in out
    assert not [key for key in weights(run) if "teacher" in key]
    assert_same_weights(weights(place / "runs" / "large"), before)
    assert any("pseudo_label/rate" in record for record in read_metrics(run / "metrics.jsonl"))

    # resumed, it goes on to the bit, without measuring anew
    straight = weights(run)
    for state in sorted((run / "state").iterdir())[-1:]:
        shutil.rmtree(state)
    assert train(place, "taught", *arguments, "--resume") == 0
    assert "measured on" not in capsys.readouterr().out
    assert_same_weights(weights(run), straight)

    # and another teacher is refused
    for state in sorted((run / "state").iterdir())[-1:]:
        shutil.rmtree(state)
    other = f"pseudo_labels.teacher={run}"
    assert train(place, "taught", *arguments, other, "--resume") == 1
    assert "lies in the folder of this run" in capsys.readouterr().err
    shutil.copytree(run / "checkpoint", place / "other")
    assert train(place, "taught", *arguments, f"pseudo_labels.teacher={place / 'other'}", "--resume") == 1
    assert "the state was made with" in capsys.readouterr().err


@pytest.mark.slow
def test_the_own_teacher_takes_over_and_is_measured_itself(place, capsys):
    arguments = [f"pseudo_labels.teacher={place / 'runs' / 'large'}", "pseudo_labels.teacher_until=0.5",
                 "train.warmup_steps=0", "pseudo_labels.held_out=0.25", *MEASURED]  # fmt: skip
    assert train(place, "moving", *arguments) == 0
    out = capsys.readouterr().out
    assert "1 of 4 labelled images are kept from training" in out
    assert "measured on 1 labelled images" in out
    assert out.index("pseudo_labels.teacher=") < out.index("step 3: teacher, measured on 1 labelled images")
    straight = weights(place / "runs" / "moving")
    state = place / "runs" / "moving" / "state"
    shutil.rmtree(sorted(state.iterdir())[-1])
    assert train(place, "moving", *arguments, "--resume") == 0
    assert_same_weights(weights(place / "runs" / "moving"), straight)


@pytest.mark.slow
def test_labels_of_predict_in_a_folder_teach_as_the_network_does(place, capsys):
    scenes, large = place / "scenes", place / "runs" / "large"
    config = yaml.safe_load((place / "tiny.yaml").read_text())
    images = [line.split()[0] for split in ("unlabeled", "labeled")
              for line in (scenes / config["data"][split]).read_text().splitlines()]  # fmt: skip
    out = place / "labels"
    assert predict([str(large), *(str(scenes / name) for name in images), "-o", str(out), "--soft"]) == 0
    with np.load(next((out / "soft").glob("*.npz"))) as found:
        assert found["probs"].shape == (5, 40, 48)
        assert list(found["classes"]) == [item.name for item in load_checkpoint(large).info.classes]
    for state in ("soft", "masks"):
        assert train(place, f"folder_{state}", f"pseudo_labels.folder={out}", *MEASURED) == 0, state
        said = capsys.readouterr().out
        assert "pseudo-labels come from 6 files" in said
        assert "measured on 4 labelled images" in said
        teacher = load_checkpoint(place / "runs" / f"folder_{state}").info.teacher
        assert teacher["from"] == f"pseudo_labels.folder={out}"
        shutil.rmtree(out / "soft", ignore_errors=True)  # the masks are left
    assert train(place, "labelless", f"pseudo_labels.folder={scenes}") == 1
    assert "has no labels for 6 of 6 images" in capsys.readouterr().err


@pytest.mark.slow
def test_levers_resume_to_the_bit(place):
    levers = [
        "prototypes.consistency=0.3", "prototypes.update_from=clean", "pseudo_labels.source=reweighted",
        "prototypes.feature=stage3", "loss.unsupervised_start=0.5", "loss.unsupervised_ramp=3",
        "train.rare_class_temperature=0.05", "pseudo_labels.held_out=0.25", "pseudo_labels.calibrate_every=3",
        *MEASURED,
    ]  # fmt: skip
    assert train(place, "levers", *levers) == 0
    straight = weights(place / "runs" / "levers")
    shutil.rmtree(sorted((place / "runs" / "levers" / "state").iterdir())[-1])
    assert train(place, "levers", *levers, "--resume") == 0
    assert_same_weights(weights(place / "runs" / "levers"), straight)


def test_a_teacher_of_other_classes_or_nowhere(place, capsys):
    other = place / "foreign"
    shutil.copytree(place / "runs" / "large" / "checkpoint", other)
    info = json.loads((other / "config.json").read_text())
    info["classes"][0]["name"] = "void"
    (other / "config.json").write_text(json.dumps(info))
    assert train(place, "a", f"pseudo_labels.teacher={other}") == 1
    assert "has the classes void," in capsys.readouterr().err
    assert train(place, "a", "pseudo_labels.teacher=nowhere") == 1
    assert "no checkpoint at nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pseudo_labels": {"teacher": "a", "folder": "b"}}, "not both"),
        ({"pseudo_labels": {"teacher": "a", "source": "fused"}}, "about the own teacher's heads"),
        ({"pseudo_labels": {"folder": "a"}}, "data.kind=synthetic has none"),
        ({"pseudo_labels": {"target_precision": 0.9}}, "set pseudo_labels.held_out"),
        ({"pseudo_labels": {"target_precision": 1.0}}, "target_precision"),
        ({"pseudo_labels": {"teacher": "a", "teacher_size": [4, 320]}}, "at least 8x8"),
        ({"pseudo_labels": {"teacher": "a", "teacher_until": 0}}, "teacher_until"),
        ({"pseudo_labels": {"source": "reweighted"}, "method": {"preset": "fixmatch"}}, "reweighted needs"),
        ({"prototypes": {"feature": "stage4", "projection": "none"}}, "needs prototypes.projection"),
        ({"prototypes": {"consistency": -1}}, "consistency"),
        ({"prototypes": {"consistency_temperature": 0}}, "consistency_temperature"),
        ({"loss": {"unsupervised_start": 0.5}}, "belong together"),
        ({"loss": {"unsupervised_ramp": 5}}, "belong together"),
        ({"train": {"rare_class_temperature": 0}}, "rare_class_temperature"),
    ],
)  # fmt: skip
def test_bad_values_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"method": {"preset": "supervised"}, "pseudo_labels": {"teacher": "a"}},
            "without unlabelled images",
        ),
        ({"method": {"preset": "fixmatch"}, "prototypes": {"consistency": 0.1}}, "without prototypes"),
        ({"prototypes": {"consistency_pixels": "believed"}}, "with prototypes.consistency=0"),
        ({"pseudo_labels": {"teacher_until": 0.5}}, "teacher_until: no effect"),
        ({"pseudo_labels": {"distance_temperature": 0.5}}, "source=reweighted"),
        ({"pseudo_labels": {"threshold": 0.5, "target_precision": 0.9, "held_out": 0.2}}, "chooses it"),
    ],
)
def test_what_is_ignored_is_said(sections, message):
    (text,) = ignored_settings(tiny_config(**{"pseudo_labels": {"threshold": 0.8}} | sections))
    assert message in text
    assert ignored_settings(tiny_config(pseudo_labels={"threshold": 0.8})) == []


def test_the_weight_of_unlabelled_images_rises_evenly():
    config = tiny_config(loss={"unsupervised_start": 0.5, "unsupervised_ramp": 2})
    schedule = make_schedule(config, 4, 6)
    assert schedule.warmup_steps == 2
    assert [schedule.phase(step).unsupervised_share for step in range(1, 6)] == [0.5, 0.5, 0.75, 1, 1]
    assert make_schedule(tiny_config(), 4, 6).phase(2).unsupervised_share == 1


def test_when_the_own_teacher_is_measured():
    labels = {"held_out": 0.25, "target_precision": 0.9, "calibrate_every": 2}
    schedule = make_schedule(tiny_config(pseudo_labels=labels), 4, 6)
    assert [step for step in range(6) if schedule.calibrates(step)] == [2, 4]
    outside = tiny_config(pseudo_labels=labels | {"teacher": "a", "teacher_until": 0.5})
    schedule = make_schedule(outside, 4, 6)
    assert [step for step in range(6) if schedule.calibrates(step)] == [3, 5]
    assert [schedule.phase(step).outside for step in range(6)] == [True] * 3 + [False] * 3


def test_rare_classes_are_drawn_as_often_as_the_formula_says():
    shown = np.array([[True, False, False], [True, False, False], [True, True, False]])
    # exp((1 - f) / T): e ** 0.5 and e ** 1.5; the third class is shown by no image
    pick = rare_class_picker(shown, [0.75, 0.25, 0.0], 0.5, seed=0)
    drawn = [pick(position) for position in range(3000)]
    rare = math.e / (1 + math.e)
    shares = [drawn.count(index) / len(drawn) for index in range(3)]
    assert shares == pytest.approx([(1 - rare) / 3, (1 - rare) / 3, rare + (1 - rare) / 3], abs=0.03)
    assert [pick(position) for position in (7, 2999, 7)] == [drawn[7], drawn[2999], drawn[7]]
    # a temperature so low that the exponents leave the range of floats
    assert rare_class_picker(shown, [0.75, 0.25, 0.0], 1e-4, seed=0)(0) == 2


def test_the_draw_of_an_image_is_that_of_its_position_on_any_number_of_processes():
    pick = rare_class_picker(np.eye(4, dtype=bool), [0.7, 0.1, 0.1, 0.1], 0.1, seed=3)

    def sampler(batch, rank, world, start=0):
        places = {"start": start, "stop": 6, "rank": rank, "world": world}
        draws = StreamSampler(4, batch, seed=3, stream="labeled", pick=pick, **places)
        return [draw for one in draws for draw in one]

    whole = sampler(4, 0, 1)
    halves = [*sampler(2, 0, 2), *sampler(2, 1, 2)]
    assert sorted(whole, key=lambda draw: draw[1]) == sorted(halves, key=lambda draw: draw[1])
    assert sampler(4, 0, 1, start=4) == whole[16:]


def test_held_out_images_leave_every_class_an_image():
    shown = np.array([[True, True, False], [True, False, False], [True, False, True], [True, False, True]])
    for seed in range(20):
        kept = hold_out(shown, 0.5, np.random.default_rng(seed))
        assert len(kept) == 2
        assert 0 not in kept, "the only image of the second class"
        assert set(kept) != {2, 3}
    with pytest.raises(DataError, match="of 2 labelled images none can be spared"):
        hold_out(np.eye(2, dtype=bool), 0.5, np.random.default_rng(0))
