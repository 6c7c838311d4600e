import pytest

from protoseg import errors
from protoseg.errors import ConfigError, DataError, report


@pytest.mark.parametrize(
    ("rank", "error", "waits", "text"),
    [
        ("0", ConfigError("wrong"), [], "error: wrong\n"),
        # the launcher ends all once one has ended: the first is given the time to say it
        ("2", ConfigError("wrong"), [errors.FIRST_SPEAKS_S], "error (process 2): wrong\n"),
        ("1", DataError("unreadable"), [], "error (process 1): unreadable\n"),
    ],
)
def test_of_several_processes_the_first_says_what_is_wrong(rank, error, waits, text, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    assert report(error) == 1
    assert waited == waits
    assert capsys.readouterr().err == text
