from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from tiny import PROJECT_ROOT, quiet_environment

from protoseg import __version__
from protoseg.cli.commands import COMMANDS
from protoseg.cli.main import help_text, main, run
from protoseg.cli.parsers import parser_of

LIGHT = ("convert", "check", "split", "init", "scenes", "serve")


def command(*words, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "protoseg", *words],
        env=quiet_environment(), capture_output=True, text=True, check=False, **options,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_help_answers_at_once_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, time; from protoseg.cli.main import main; main(['--help']); main(['--version'])\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml', 'argparse'} & set(sys.modules)\n"
        # of this process, so that a busy machine does not count
        "sys.exit(f'{sorted(heavy)} {time.process_time()}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=quiet_environment(), text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    heavy, seconds = done.stderr.rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.3


def test_the_help_has_every_command_and_the_way():
    text = command("--help").stdout
    assert text == help_text()
    assert all(
        re.search(rf"^ .* {name} +{re.escape(item.summary)}$", text, re.M) for name, item in COMMANDS.items()
    )
    way = re.findall(r"^  protoseg (\w+)", text, re.M)
    assert set(way) <= set(COMMANDS)
    assert way[1:] == ["convert", "init", "check", "train", "evaluate", "predict", "export", "serve"]


def test_versions():
    lines = command("--version").stdout.splitlines()
    assert lines[0] == f"protoseg {__version__}"
    assert f"  torch {version('torch')}" in lines
    assert f"  bentoml {version('bentoml')}" in lines


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian"], "there is no command 'trian'; did you mean protoseg train?"),
        (["Export"], "did you mean protoseg export?"),
        (["evaluat", "runs/x"], "did you mean protoseg evaluate?"),
        (["zzz"], "there is no command 'zzz'; protoseg --help lists all"),
        (["--config", "x"], "there is no option --config before the command"),
    ],
)
def test_a_mistyped_command(capsys, words, text):
    assert main(words) == 2
    assert text in capsys.readouterr().err


def test_without_a_command_the_help_is_on_standard_error(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err == help_text()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in LIGHT else pytest.mark.slow) for name in COMMANDS]
)
def test_the_help_of_each_command(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["protoseg"])
    for words in ([name, "--help"], ["help", name]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: protoseg {name} ["), text


def test_the_command_itself_is_called_as_before(capsys):
    from protoseg.split.__main__ import main as split

    with pytest.raises(SystemExit):
        split(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m protoseg.split ")


def test_arguments_reach_the_command_unchanged(monkeypatch):
    seen = []
    monkeypatch.setattr("protoseg.split.__main__.main", lambda argv: seen.append((argv, sys.argv)) or 7)
    monkeypatch.setattr(sys, "argv", ["protoseg"])
    words = ["a b", "--labeled", "3", "-o", "x", "--", "--odd", ""]
    assert run("split", words) == 7
    assert seen == [(words, ["protoseg split", *words])]


def test_a_command_that_fails_gives_its_exit_code(tmp_path):
    done = command("check", "--config", "none.yaml", code=1, cwd=tmp_path)
    assert done.stderr.startswith("error: config file none.yaml not found; these come along: camvid")
    assert command("split", code=2).stderr.startswith("usage: protoseg split ")


def test_a_parser_is_taken_without_running_the_command(monkeypatch):
    import argparse

    before = argparse.ArgumentParser.parse_known_args
    from protoseg.split.__main__ import main as split

    assert "--labeled" in parser_of(split).format_usage()
    assert argparse.ArgumentParser.parse_known_args is before
    with pytest.raises(RuntimeError, match="parses no arguments"):
        parser_of(lambda argv: 0)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_completion(shell, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["protoseg"])
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert "calibrate" in text
    assert "processes" in text, "the trainer's, which is added to its own options"
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        # as readline asks: words after the command's name
        asked = 'COMP_WORDS=(protoseg expo); COMP_CWORD=1; _shtab_protoseg; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", f"{text}\n{asked}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["export"]


def test_the_page_of_the_command_line_is_current():
    page = (PROJECT_ROOT / "docs" / "cli.md").read_text()
    assert f"```text\n{help_text()}```" in page
    for path in [*PROJECT_ROOT.glob("docs/*.md"), PROJECT_ROOT / "README.md"]:
        for name in re.findall(r"^protoseg ([\w-]+)", path.read_text(), re.M):
            assert name in {*COMMANDS, "help"}, f"{path.name}: protoseg {name}"
