"""A setting that cannot be used stops the start with one line that names it and does not show it."""

import pytest
from space_runtime.settings import RuntimeSettings, load
from src.config.settings import load_settings

NO_ORIGINS = (
    "example.com",
    "https://example.com/",
    "https://example.com/app",
    "https://*.example.com",
    "https://user@example.com",
    "ftp://example.com",
    "https://example.com,",
    "https://example.com https://example.org",
    "*,https://example.com",
)
ORIGINS_LINE = "CORS_ORIGINS must be comma-separated origins such as https://example.com, without a path, or *."

LIMIT_LINE = "PUBLIC_LIMIT must be off, or a number for each second, minute, hour or day, such as 120/minute."


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DATABASE_FALLBACK", "sometimes", "DATABASE_FALLBACK must be auto or strict."),
        ("POOL_SIZE", "many", "POOL_SIZE must be a whole number from 1 to 100."),
        ("API_TOKEN", "short", "API_TOKEN must be at least 8 characters."),
        *(
            ("PUBLIC_LIMIT", value, LIMIT_LINE)
            for value in ("many", "0/minute", "-1/minute", "60", "60/week", "60/2 hours")
        ),
        *(("CORS_ORIGINS", value, ORIGINS_LINE) for value in NO_ORIGINS),
    ],
)
def test_a_bad_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        load_settings()
    assert stop.value.code == line


def test_a_blank_value_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_SIZE", "")
    assert load_settings().pool_size is None


def test_a_setting_of_the_owner_without_a_description_is_named_and_its_value_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Settings(RuntimeSettings):
        max_tokens: int = 256

    monkeypatch.setenv("MAX_TOKENS", "a-secret-value")
    with pytest.raises(SystemExit) as stop:
        load(Settings)
    assert stop.value.code == "MAX_TOKENS cannot be used (int_parsing)."
