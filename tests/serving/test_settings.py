from __future__ import annotations

from pathlib import Path

import pytest

from serving.settings import Settings, SettingsError, load_settings

KEY = "a" * 64


def test_defaults_need_no_environment() -> None:
    settings = load_settings({})
    assert settings == Settings()
    assert settings.max_body == 20 * 1024 * 1024
    assert settings.max_pixels == 25_000_000


def test_environment_overrides_yaml(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text("workers: 3\nqueue: 5\nmax_body: 1MiB\n")
    environ = {"PROTOSEG_CONFIG": str(file), "PROTOSEG_QUEUE": "7", "PROTOSEG_FORMATS": "png, tiff"}
    settings = load_settings(environ)
    assert (settings.workers, settings.queue, settings.max_body) == (3, 7, 2**20)
    assert settings.formats == ("png", "tiff")


@pytest.mark.parametrize(
    ("text", "expected"), [("20MiB", 20 * 2**20), ("25e6", 25_000_000), ("25M", 25_000_000), ("1.5k", 1500)]
)
def test_units(text: str, expected: int) -> None:
    assert load_settings({"PROTOSEG_MAX_PIXELS": text}).max_pixels == expected


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROTOSEG_WORKERS", "many", "PROTOSEG_WORKERS"),
        ("PROTOSEG_WORKERS", "0", "PROTOSEG_WORKERS"),
        ("PROTOSEG_MODLE", "x", "PROTOSEG_MODLE: unknown key"),
        ("PROTOSEG_MAX_BODY", "20 apples", "20MiB"),
        ("PROTOSEG_MAX_BODY", "1GiB", "body_memory"),
        ("PROTOSEG_FORMATS", "png,exe", "exe"),
        ("PROTOSEG_API_KEYS", "secret", "sha256sum"),
        ("PROTOSEG_CORS", "https://app.example/", "as https://app.example, or"),
        ("PROTOSEG_CORS", "https://App.example", "as https://app.example, or"),
        ("PROTOSEG_CORS", "https://app.example:443", "as https://app.example, or"),
        ("PROTOSEG_CORS", "http://127.0.0.1:3000/page", "as http://127.0.0.1:3000, or"),
        ("PROTOSEG_CORS", "app.example", "scheme://host"),
        ("PROTOSEG_CORS", "https://*.example", "no browser sends the origin"),
        ("PROTOSEG_CONFIG", "absent.yaml", "absent.yaml"),
        ("PROTOSEG_API_KEYS_FILE", "absent.txt", "absent.txt"),
    ],
)
def test_bad_values_give_one_line(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://app.example", "http://localhost:8080", "http://[::1]:3000", "tauri://localhost"],
)
def test_origins_that_browsers_send(origin: str) -> None:
    assert load_settings({"PROTOSEG_CORS": f"{origin}, https://b.example"}).cors[0] == origin


def test_all_problems_of_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text("formats: [png, 1]\ncolour: blue\nadmin_keys: hidden\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({"PROTOSEG_CONFIG": str(file)})
    problems = str(caught.value).split("; ")
    assert problems[0] == f"{file}: formats.1: Input should be a valid string (got 1)"
    assert problems[1].startswith(f"{file}: admin_keys: give SHA-256")
    assert problems[2] == f"{file}: colour: unknown key (got 'blue')"
    assert "hidden" not in str(caught.value)


def test_a_key_is_never_echoed() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"PROTOSEG_API_KEYS": "my-plain-key"})
    assert "my-plain-key" not in str(caught.value)


def test_variables_of_others_are_left_alone() -> None:
    # Kubernetes adds these for a Service named protoseg
    environ = {
        "PROTOSEG_PORT": "tcp://10.0.0.1:80",
        "PROTOSEG_SERVICE_HOST": "10.0.0.1",
        "PROTOSEG_SERVICE_PORT_HTTP": "80",
        "PROTOSEG_PORT_80_TCP_ADDR": "10.0.0.1",
        "PROTOSEG_DATA": "../data",
        # of the export and of the client
        "PROTOSEG_CACHE": "cache",
        "PROTOSEG_API_KEY": "secret",
        "PROTOSEG_MODEL": "",
    }
    assert load_settings(environ) == Settings()


def test_keys_from_setting_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# team\n{'b' * 64}  # somebody\n\n")
    environ = {"PROTOSEG_API_KEYS": KEY.upper(), "PROTOSEG_API_KEYS_FILE": str(file)}
    assert load_settings(environ).key_hashes() == {KEY.encode(), b"b" * 64}


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.settings.usable_cores", lambda: 8)
    assert Settings(workers=2).pool_threads == 4
    assert Settings(workers=2, intra_threads=4).pool_threads == 1
    assert Settings(workers=16).pool_threads == 1
