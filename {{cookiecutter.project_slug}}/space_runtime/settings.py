"""The runtime's settings, from environment variables, and what the Hub says about a Space.

DATABASE_URL is not one of them: people paste it in many forms, so it has a resolver of its own.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# Browsers send origins without a path, so one with a path would never match.
_ORIGIN = r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
_ORIGINS = rf"(?i)^(?:\*|{_ORIGIN}(?:\s*,\s*{_ORIGIN})*)?$"
Origins = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=_ORIGINS)]

# Browsers ignore a directive that they do not know, which would leave a page open in silence.
_DIRECTIVE = (
    r"(?:(?:child|connect|default|fenced-frame|font|frame|img|manifest|media|object|worker)-src"
    r"|(?:script|style)-src(?:-elem|-attr)?|base-uri|form-action|frame-ancestors|report-to"
    r"|report-uri|sandbox|trusted-types|require-trusted-types-for|upgrade-insecure-requests)"
    r"(?: +[!-~&&[^,;]]+)*"
)
_POLICY = rf"^(?:default|strict|off|{_DIRECTIVE}(?: *; *{_DIRECTIVE})*(?: *;)?)$"
PagePolicy = Annotated[str, StringConstraints(strip_whitespace=True, pattern=_POLICY)]


def _between(least: float, most: float, what: str, *, default: float | None) -> Any:
    return Field(default, ge=least, le=most, description=f"{what} from {least} to {most}")


def _limit(default: str) -> Any:
    return Field(
        default,
        pattern=r"^(?:off|[1-9][0-9]{0,6}/(?:second|minute|hour|day))$",
        description="off, or a number for each second, minute, hour or day, such as 120/minute",
    )


class RuntimeSettings(BaseSettings):
    """What the runtime reads; a field's description completes the sentence "NAME must be ..."."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    database_fallback: Literal["auto", "strict"] = Field(
        default="auto", description="auto or strict"
    )
    database_connect_seconds: float = _between(1, 300, "a number of seconds", default=10)
    database_check_seconds: float = _between(0.1, 60, "a number of seconds", default=2)
    sqlite_dir: str | None = Field(default=None, description="the path of a directory")
    snapshot_url: SecretStr | None = Field(
        default=None, description="a directory, or a URL such as hf://buckets/user/bucket/folder"
    )
    snapshot_interval: int = _between(1, 86400, "a number of seconds", default=60)
    api_token: SecretStr | None = Field(
        default=None, min_length=8, description="at least 8 characters"
    )
    pool_size: int | None = _between(1, 100, "a whole number", default=None)
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    log_format: Literal["json", "text"] | None = Field(default=None, description="json or text")
    metrics: Literal["on", "off"] = Field(default="on", description="on or off")
    cors_origins: Origins = Field(
        default="",
        description="comma-separated origins such as https://example.com, without a path, or *",
    )
    page_policy: PagePolicy = Field(
        default="default",
        description="default, strict, off or a Content-Security-Policy such as "
        "default-src 'self'; img-src *",
    )
    port: int = _between(1, 65535, "a whole number", default=7860)
    public_limit: str = _limit("120/minute")
    user_limit: str = _limit("120/minute")
    max_body_bytes: int = _between(1024, 1024**3, "a number of bytes", default=1024**2)

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Strip all values: pasted ones often end with a line break, which no token may contain."""
        for name, value in values.items():
            values[name] = value.strip() if isinstance(value, str) else value
        return {name: value for name, value in values.items() if value != ""}


@dataclass(frozen=True)
class Space:
    """What the Hub sets in a Space's environment; both are None anywhere else."""

    id: str | None
    host: str | None

    @property
    def is_running_here(self) -> bool:
        """Whether this process runs on a Space."""
        return self.id is not None

    @property
    def is_behind_edge(self) -> bool:
        """Whether the Hub's proxy is in front; it is not where `make dev SPACE=1` plays a Space."""
        return self.is_running_here and not (self.host or "").startswith("127.0.0.1")


Settings = TypeVar("Settings", bound=RuntimeSettings)


def load(kind: type[Settings]) -> Settings:
    """Return the settings, or exit with one line that names the bad variables, not their values."""
    try:
        return kind()
    except ValidationError as error:
        raise SystemExit(" ".join(_sentences(kind, error).values())) from None


def problems(kind: type[RuntimeSettings], variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence about each of these variables that would prevent the start."""
    values = {name.lower(): value for name, value in variables.items()}
    try:
        kind(**values)
    except ValidationError as error:
        # Settings also read this process's own environment, which the caller did not ask about.
        return [text for name, text in _sentences(kind, error).items() if name in values]
    return []


def read_space(environ: Mapping[str, str] = os.environ) -> Space:
    """Return what the Hub says about this Space."""
    return Space(id=environ.get("SPACE_ID") or None, host=environ.get("SPACE_HOST") or None)


def _sentences(kind: type[RuntimeSettings], error: ValidationError) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for problem in error.errors():
        name = str(problem["loc"][0])
        description = kind.model_fields[name].description
        # Pydantic's own sentence may contain the value; the code of the error never does.
        told = f"must be {description}" if description else f"cannot be used ({problem['type']})"
        sentences[name] = f"{name.upper()} {told}."
    return sentences
