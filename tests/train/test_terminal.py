"""What a run shows, and for whom."""

import io
import json
import logging

import pytest

from protoseg.train.terminal import Terminal, in_words, start_logging


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def same_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], _ = before
    root.setLevel(before[1])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute left"), (59, "less than a minute left"), (60, "about 1 minute left"),
        (190, "about 3 minutes left"), (5300, "about 88 minutes left"), (5400, "about 2 hours left"),
        (36 * 3600 - 1, "about 36 hours left"), (3 * 86400, "about 3 days left"),
    ],
)  # fmt: skip
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


def shown(monkeypatch, output, *, main=True, screen=True):
    out, err = io.StringIO(), Screen() if screen else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    start_logging(main=main, output=output)
    terminal = Terminal(output, main=main, step=0, max_steps=40)
    terminal.bar.update(10)
    terminal.progress(10, "loss 0.5, about 3 minutes left")
    terminal.progress(11, "loss 0.4, about 2 minutes left")
    terminal.say("a line")
    logging.getLogger("protoseg").warning("warning: mind")
    terminal.event("log", step=10, loss=float("nan"))
    terminal.close()
    return out.getvalue(), err.getvalue()


def test_a_terminal_has_one_bar_and_lines_above_it(monkeypatch):
    out, err = shown(monkeypatch, "text")
    assert out == "a line\nwarning: mind\n"
    assert "10 of 40 steps, loss 0.5, about 3 minutes left" in err


def test_a_file_has_a_line_now_and_then(monkeypatch):
    out, err = shown(monkeypatch, "text", screen=False)
    assert out == "step 10 of 40: loss 0.5, about 3 minutes left\na line\nwarning: mind\n"
    assert err == ""


def test_quiet_and_other_processes(monkeypatch):
    assert shown(monkeypatch, "quiet") == ("warning: mind\n", "")
    assert shown(monkeypatch, "text", main=False) == ("", "")


def test_machines_get_objects(monkeypatch):
    out, err = shown(monkeypatch, "json")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "message", "level": "warning", "text": "warning: mind"},
        {"event": "log", "step": 10, "loss": None},
    ]
    assert err == ""
