"""A setting that cannot be used stops the start with one line that names it and does not show it."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, HttpUrl, SecretStr, model_validator
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


class Words(RuntimeSettings):
    """Settings as an owner writes them: a line each, without a description."""

    max_tokens: int = 256
    temperature: float | None = None
    is_fast: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    stop_words: list[str] = Field(default=[])
    share: Annotated[int, Field(ge=1, le=100)] = 50
    key: SecretStr = Field(default=SecretStr("at least eight"), min_length=8)
    where: HttpUrl | None = None
    other: int = Field(default=1, validation_alias="OTHER_NAME")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("MAX_TOKENS", "MAX_TOKENS must be a whole number."),
        ("TEMPERATURE", "TEMPERATURE must be a number."),
        ("IS_FAST", "IS_FAST must be true or false."),
        ("DEVICE", "DEVICE must be cpu or cuda."),
        ("STOP_WORDS", 'STOP_WORDS must be a list such as ["one", "two"].'),
        ("SHARE", "SHARE must be a whole number from 1 to 100."),
        ("KEY", "KEY must be text, at least 8 characters."),
        ("WHERE", "WHERE must be a URL."),
        ("OTHER_NAME", "OTHER_NAME must be a whole number."),
    ],
)
def test_a_setting_without_a_description_says_what_its_type_wants_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    monkeypatch.setenv(name, "secret")
    with pytest.raises(SystemExit) as stop:
        load(Words)
    assert stop.value.code == line


def test_what_is_wrong_with_several_settings_is_told_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wanting(RuntimeSettings):
        repository: str
        most: int = 5

        @model_validator(mode="after")
        def fits(self) -> "Wanting":
            if self.most > 5:
                raise ValueError(self.repository)
            return self

    with pytest.raises(SystemExit) as stop:
        load(Wanting)
    assert stop.value.code == "REPOSITORY is not set; it must be text."
    monkeypatch.setenv("REPOSITORY", "secret")
    monkeypatch.setenv("MOST", "6")
    with pytest.raises(SystemExit) as stop:
        load(Wanting)
    assert stop.value.code == "The settings contradict each other."


def test_a_setting_with_one_value_is_asked_for_that_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(RuntimeSettings):
        mode: Literal["fast"] = "fast"

    monkeypatch.setenv("MODE", "slow")
    with pytest.raises(SystemExit) as stop:
        load(Fixed)
    assert stop.value.code == "MODE must be fast."


@pytest.mark.parametrize("origins", [None, "*"])
def test_no_page_on_the_web_may_send_along_cookies_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, origins: str | None
) -> None:
    monkeypatch.setenv("CORS_CREDENTIALS", "on")
    if origins:
        monkeypatch.setenv("CORS_ORIGINS", origins)
    with pytest.raises(SystemExit) as stop:
        load_settings()
    assert stop.value.code == "CORS_CREDENTIALS must be off, or on where CORS_ORIGINS names origins, not *."
    monkeypatch.setenv("CORS_ORIGINS", "https://example.com")
    assert load_settings().cors_credentials == "on"


def test_a_log_level_may_be_written_as_python_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "CRITICAL")
    assert load_settings().log_level == "critical"
