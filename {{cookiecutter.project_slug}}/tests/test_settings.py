"""Settings: a bad value stops the start with one line; the example file is complete."""

import re

import pytest

from src.config.settings import PROJECT_ROOT, Settings, load_settings


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DATABASE_FALLBACK", "sometimes", "DATABASE_FALLBACK must be auto or strict."),
        ("POOL_SIZE", "many", "POOL_SIZE must be a whole number from 1 to 100."),
        ("API_TOKEN", "short", "API_TOKEN must be at least 8 characters."),
    ],
)
def test_a_bad_value_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        load_settings()
    assert stop.value.code == line


def test_a_blank_value_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_SIZE", "")
    assert load_settings().pool_size is None


def test_the_example_file_names_every_setting_and_nothing_else() -> None:
    text = (PROJECT_ROOT / ".env.example").read_text(encoding="utf-8")
    documented = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    assert documented == {name.upper() for name in Settings.model_fields} | {"DATABASE_URL"}
