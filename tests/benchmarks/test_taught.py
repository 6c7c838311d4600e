"""A taught network beside its teacher, from made records."""

import pytest
from small_study import write_record, write_study

from benchmarks.accuracy.records import Places
from benchmarks.accuracy.runs import plan, unique_runs
from benchmarks.accuracy.study import StudyError, load_study
from benchmarks.taught import compare, main, table, verdict

METHODS = [
    {"name": "large", "label": "large", "head": "linear", "overrides": {"method.preset": "fixmatch"}},
    {"name": "taught", "label": "small, taught", "head": "linear", "teacher": "large",
     "overrides": {"method.preset": "fixmatch", "pseudo_labels.teacher_size": [48, 48]}},
    {"name": "alone", "label": "small", "head": "linear", "overrides": {"method.preset": "supervised"}},
]  # fmt: skip


def took(ms):
    spread = {"median": ms, "min": ms - 1, "max": ms + 1, "n": 3}
    return {"size": [192, 144], "wall_ms": spread, "cpu_ms": spread}


def test_accuracy_and_latency_relative_to_the_teacher(tmp_path):
    study = load_study(write_study(tmp_path, methods=METHODS, seeds=[0, 1]))
    cells = plan(study)
    places = Places(tmp_path / "runs", tmp_path / "records")
    figures = {"large": (0.5, 0.7), "taught": (0.57, 0.60), "alone": (0.4, 0.4)}
    records = {
        run.name: write_record(study, run, places, figures[run.method.name][run.seed])
        for run in unique_runs(cells)
    }
    latency = {"large": took(40.0), "taught": took(10.0), "alone": took(10.0)}
    large, taught, alone = compare(study, cells, records, latency)
    assert (large["miou"], large["kept"], large["share"]) == (pytest.approx(60), None, None)
    assert taught["kept"] == pytest.approx(58.5 / 60)
    assert taught["share"] == 0.25
    assert alone["kept"] is None
    assert "58.5 ± 2.1 | 97.5 % | 10.0 (9.0 to 11.0) | 0.25" in table({"methods": [large, taught, alone]})
    assert verdict([large, taught]).endswith("97 % at a third is reached")
    slower = compare(study, cells, records, latency | {"taught": took(14.0)})
    assert "missed" in verdict(slower)
    del latency["taught"]
    assert [item["method"] for item in compare(study, cells, records, latency)] == ["large", "alone"]


def test_without_runs_it_says_what_to_do(tmp_path, capsys):
    path = write_study(tmp_path, methods=METHODS)
    assert main([str(path), "--runs", str(tmp_path), "--results", str(tmp_path)]) == 1
    assert "no finished run of small" in capsys.readouterr().err


def test_a_teacher_is_trained_first_and_named_by_its_run(tmp_path):
    from benchmarks.accuracy.trainer import trainer_command

    study = load_study(write_study(tmp_path, methods=[METHODS[1], METHODS[0]]))
    runs = unique_runs(plan(study))
    assert [run.method.name for run in runs] == ["large", "taught"]
    command = trainer_command(study, runs[1], tmp_path / "elsewhere", resume=False)
    assert f"pseudo_labels.teacher={tmp_path / 'elsewhere' / runs[0].name}" in command
    assert runs[1].config.pseudo_labels.teacher == runs[0].name
    assert not [
        text for text in trainer_command(study, runs[0], tmp_path, resume=False) if "pseudo_labels" in text
    ]


@pytest.mark.parametrize(
    "changes",
    [{"teacher": "nobody"}, {"teacher": "taught"}, {"overrides": {"pseudo_labels.teacher": "runs/x"}}],
)
def test_a_teacher_must_be_a_plain_method_of_the_study(tmp_path, changes):
    with pytest.raises(StudyError, match="teacher"):
        load_study(write_study(tmp_path, methods=[METHODS[0], METHODS[1] | changes]))


def test_a_study_over_another_changes_what_it_says(tmp_path):
    write_study(tmp_path)
    (tmp_path / "more.yaml").write_text("base: small.yaml\nname: more\nevaluations: 5\n")
    study = load_study(tmp_path / "more.yaml")
    assert (study.name, study.evaluations) == ("more", 5)
    assert [method.name for method in study.methods] == ["supervised", "protoseg"]
