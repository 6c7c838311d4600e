"""Study files: costs, hashes, faults."""

import math
import re
from pathlib import Path

import pytest
from small_study import STAGES, write_study
from tiny import tiny_config

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.runs import cost_of, plan, steps_within, unique_runs
from benchmarks.accuracy.settings import config_hash
from benchmarks.accuracy.study import STUDIES, Budget, StudyError, load_study
from benchmarks.accuracy.trainer import trainer_command
from protoseg.config.load import parse_config


def test_cost_counts_student_and_teacher_images():
    supervised = tiny_config(method={"preset": "supervised"}, train={"batch_size": 4})
    two_views = tiny_config(method={"preset": "unimatch_v2"}, train={"batch_size": 4, "accumulate": 2})
    protoseg = tiny_config(train={"batch_size": 4})
    assert cost_of(supervised, 600, 150) == (cost := cost_of(supervised, 600, 0))
    assert (cost.student, cost.teacher) == (2400, 0)
    cost = cost_of(protoseg, 600, 150)  # 150 x 4, then 450 x (4 + 4) and 450 x 4 of the teacher
    assert (cost.student, cost.teacher, cost.total) == (4200, 1800, 6000)
    cost = cost_of(two_views, 10, 4)  # 4 x 8, then 6 x (8 + 16) and 6 x 8 of the teacher
    assert (cost.student, cost.teacher) == (176, 48)


@pytest.mark.parametrize("images", [6000, 5999, 6001, 1234, 400])
@pytest.mark.parametrize("preset", ["supervised", "protoseg", "unimatch_v2"])
def test_steps_within_a_budget_are_the_most_it_pays_for(images, preset):
    config = tiny_config(method={"preset": preset}, train={"batch_size": 4})
    budget = Budget(name="b", title="b", encoder_images=images)
    steps = steps_within(budget, config, 0.25)

    def total(count):
        return cost_of(config, count, math.floor(count * 0.25 + 0.5)).total

    assert total(steps) <= images < total(steps + 1)


def test_equal_cost_gives_supervised_training_its_steps():
    budget = Budget(name="b", title="b", encoder_images=6000)
    steps = {
        preset: steps_within(budget, tiny_config(method={"preset": preset}, train={"batch_size": 4}), 0.25)
        for preset in ("supervised", "fixmatch", "protoseg", "unimatch_v2")
    }
    assert steps == {"supervised": 1500, "fixmatch": 600, "protoseg": 600, "unimatch_v2": 462}
    with pytest.raises(StudyError, match="3 encoder images do not pay for a step of 12"):
        steps_within(
            Budget(name="b", title="b", encoder_images=3), tiny_config(train={"batch_size": 4}), 0.25
        )


def test_hash_follows_what_can_change_a_figure():
    base = config_hash(tiny_config())
    assert config_hash(tiny_config(run={"name": "other", "dir": "elsewhere"}, data={"cache": True})) == base
    assert config_hash(tiny_config(prototypes={"temperature": 0.1})) == base  # the default, spelled out
    assert config_hash(tiny_config(prototypes={"temperature": 0.2})) != base
    assert config_hash(tiny_config(train={"seed": 1})) != base
    # what configures a part that is off changes nothing
    plain = config_hash(tiny_config(method={"preset": "supervised"}))
    off = {"prototypes": {"temperature": 0.2}, "pseudo_labels": {"threshold": 0.95}}
    off["views"] = {"crop": [32, 32], "blur": 0.0, "jitter_strength": [0, 0, 0, 0], "mixing_probability": 1}
    assert config_hash(tiny_config(method={"preset": "supervised"}, **off)) == plain
    off["views"]["labeled_jitter"] = True
    assert config_hash(tiny_config(method={"preset": "supervised"}, **off)) != plain
    del off["views"]
    linear_only = config_hash(tiny_config(method={"preset": "fixmatch"}))
    assert (
        config_hash(tiny_config(method={"preset": "fixmatch"}, prototypes=off["prototypes"])) == linear_only
    )
    assert config_hash(tiny_config(method={"preset": "fixmatch"}, **off)) != linear_only
    # a hash that a change of code alters makes every record stale: it must be meant
    assert config_hash(parse_config({"method": {"preset": "supervised"}})) == "723831d5755ea08b"


def test_studies_of_the_project_are_valid():
    for path in sorted(STUDIES.glob("*.yaml")):
        study = load_study(path)
        assert study.name == path.stem
        runs = unique_runs(plan(study))
        assert len({run.hash for run in runs}) == len(runs), f"{path.name}: two runs are the same training"


def test_seeds_reach_list_and_training_and_budgets_share_runs():
    cells = plan(load_study("camvid"))
    by_name = {cell.run.name: cell.run.config for cell in cells}
    config = by_name["protoseg_46_seed2_200"]
    assert config.train.seed == 2
    assert config.data.labeled == "splits/46/seed2/labeled.txt"
    assert config.data.unlabeled == "splits/46/seed2/unlabeled.txt"
    assert (config.train.warmup_steps, config.train.eval_every) == (0, 100)
    shared = [cell.budget.name for cell in cells if cell.run.name == "protoseg_46_seed2_200"]
    assert shared == ["steps", "cost"]
    assert by_name["supervised_46_seed0_600"].train.eval_every == 300


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sedes": [0]}, "sedes: unknown key"),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"budgets": [{"name": "a", "title": "a"}]}, "give exactly one of steps and encoder_images"),
        ({"baseline": "best"}, "baseline 'best' is no method"),
        ({"labels": [{"name": "4", "count": 4}] * 2}, "4 is there twice"),
        ({"labels": [{"name": "4", "count": 4, "overrides": {"train.seed": 3}}]},
         "train.seed cannot be overridden"),
        ({"methods": [{"name": "m", "label": "m", "head": "linear", "labels": ["5"]}]},
         r"m: unknown labels \['5'\]"),
        ({"methods": [{"name": "m", "label": "m", "head": "best"}]}, "methods.0.head: Input should be"),
        ({"overrides": {"prototypes.tmperature": 1}}, "prototypes.tmperature: unknown key"),
        ({"config": "configs/none.yaml"}, "configs/none.yaml not found"),
        ({"budgets": [{"name": "a", "title": "a", "steps": 1}], "warmup_share": 0.6},
         "leave none for unlabelled images"),
    ],
)  # fmt: skip
def test_faults_in_a_study_are_one_readable_error(tmp_path, capsys, changes, text):
    path = write_study(tmp_path, **changes)
    assert main([str(path), "--dry-run", "--runs", str(tmp_path), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(error)


def test_a_first_stage_is_trained_once_for_each_seed_and_known_by_its_settings(tmp_path):
    study = load_study(write_study(tmp_path, seeds=[0, 1], warmup_share=0.0, **STAGES))
    runs = unique_runs(plan(study))
    first = runs[0].name
    assert re.fullmatch(r"start_4_seed0_6_[0-9a-f]{6}", first)
    assert [run.name.split("_seed")[0] for run in runs] == ["start_4", "supervised_4", "protoseg_4"] * 2
    for run in runs[1:3]:
        assert run.start == runs[0]
        assert Path(run.config.train.start_from) == Path(first)
    assert runs[4].start == runs[3]
    assert runs[0].config.optim.lr == 0.001
    assert runs[1].config.optim.lr != 0.001
    assert runs[0].cost.total == 12  # two images a step
    command = trainer_command(study, runs[1], tmp_path / "runs", resume=False)
    assert f"train.start_from={tmp_path / 'runs' / first}" in command
    # the folder of the runs does not matter, the settings of the first stage do
    moved = runs[1].config.model_copy(
        update={"train": runs[1].config.train.model_copy(update={"start_from": f"/elsewhere/{first}"})}
    )
    assert config_hash(moved) == runs[1].hash
    changed = {"steps": 6, "overrides": {"method.preset": "supervised", "optim.lr": 0.002}}
    other = unique_runs(plan(load_study(write_study(tmp_path, warmup_share=0.0, start=changed))))
    assert other[1].name == runs[1].name
    assert other[1].hash != runs[1].hash
