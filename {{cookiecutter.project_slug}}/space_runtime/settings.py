"""The runtime's settings, from environment variables, and what the Hub says about a Space.

DATABASE_URL is not one of them: people paste it in many forms, so it has a resolver of its own.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

# Browsers send origins without a path, so one with a path would never match.
_ORIGIN = r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
Origins = Annotated[
    str,
    StringConstraints(to_lower=True, pattern=rf"(?i)^(?:\*|{_ORIGIN}(?:\s*,\s*{_ORIGIN})*)?$"),
    Field(description="comma-separated origins such as https://example.com, without a path, or *"),
]

# Browsers ignore a directive that they do not know, which would leave a page open in silence.
_DIRECTIVE = (
    r"(?:(?:child|connect|default|fenced-frame|font|frame|img|manifest|media|object|worker)-src"
    r"|(?:script|style)-src(?:-elem|-attr)?|base-uri|form-action|frame-ancestors|report-to"
    r"|report-uri|sandbox|trusted-types|require-trusted-types-for|upgrade-insecure-requests)"
    r"(?: +[!-~&&[^,;]]+)*"
)
PagePolicy = Annotated[
    str,
    Field(
        pattern=rf"^(?:default|strict|off|{_DIRECTIVE}(?: *; *{_DIRECTIVE})*(?: *;)?)$",
        description="default, strict, off or a Content-Security-Policy such as "
        "default-src 'self'; img-src *",
    ),
]


Switch = Literal["on", "off"]
Level = Literal["debug", "info", "warning", "error", "critical"]
Limit = Annotated[
    str,
    Field(
        pattern=r"^(?:off|[1-9][0-9]{0,6}/(?:second|minute|hour|day))$",
        description="off, or a number for each second, minute, hour or day, such as 120/minute",
    ),
]


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _seconds(default: float, least: float, most: float) -> Any:
    wanted = f"a number of seconds from {least} to {most}"
    return Field(default, ge=least, le=most, description=wanted)


class RuntimeSettings(BaseSettings):
    """What the runtime reads; "NAME must be ..." ends with a field's description, or its type."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    database_fallback: Literal["auto", "strict"] = "auto"
    database_connect_seconds: float = _seconds(10, 1, 300)
    database_check_seconds: float = _seconds(2, 0.1, 60)
    sqlite_dir: str | None = Field(default=None, description="the path of a directory")
    snapshot_url: SecretStr | None = Field(
        default=None, description="a directory, or a URL such as hf://buckets/user/bucket/folder"
    )
    snapshot_interval: int = _seconds(60, 1, 86400)
    api_token: SecretStr | None = Field(
        default=None, min_length=8, description="at least 8 characters"
    )
    pool_size: int | None = Field(default=None, ge=1, le=100)
    log_level: Annotated[Level, BeforeValidator(_lower)] = "info"
    log_format: Literal["json", "text"] | None = None
    metrics: Switch = "on"
    cors_origins: Origins = ""
    cors_credentials: Switch = Field(
        default="off", description="off, or on where CORS_ORIGINS names origins, not *"
    )
    page_policy: PagePolicy = "default"
    port: int = Field(default=7860, ge=1, le=65535)
    public_limit: Limit = "120/minute"
    user_limit: Limit = "120/minute"
    max_body_bytes: int = Field(
        default=1024**2,
        ge=1024,
        le=1024**3,
        description=f"a number of bytes from 1024 to {1024**3}",
    )

    @field_validator("cors_credentials")
    @classmethod
    def _for_known_origins(cls, value: str, info: ValidationInfo) -> str:
        """Refuse what would let every page on the web act for a visitor who is signed in."""
        if value == "on" and info.data.get("cors_origins") in ("", "*"):
            raise ValueError
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Strip all values: pasted ones often end with a line break, which no token may contain."""
        stripped = {name: str.strip(v) if isinstance(v, str) else v for name, v in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}


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
    except (SettingsError, ValidationError) as error:
        raise SystemExit(" ".join(_sentences(kind, error).values())) from None


def problems(kind: type[RuntimeSettings], variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence about each of these variables that would prevent the start."""
    values = {name.lower(): value for name, value in variables.items()}
    try:
        kind(**values)
    except (SettingsError, ValidationError) as error:
        # Settings also read this process's own environment, which the caller did not ask about.
        return [text for name, text in _sentences(kind, error).items() if name.lower() in values]
    return []


def variables(kind: type[RuntimeSettings]) -> dict[str, FieldInfo]:
    """Return the fields by the names of their environment variables."""
    return {
        str(field.validation_alias or name).upper(): field
        for name, field in kind.model_fields.items()
    }


def read_space() -> Space:
    """Return what the Hub says about this Space."""
    return Space(id=os.environ.get("SPACE_ID") or None, host=os.environ.get("SPACE_HOST") or None)


def _sentences(
    kind: type[RuntimeSettings], error: SettingsError | ValidationError
) -> dict[str, str]:
    """Return a sentence for each variable, none of them pydantic's: those may contain the value."""
    if isinstance(error, ValidationError):
        found = [("".join(map(str, one["loc"][:1])), one["type"]) for one in error.errors()]
    else:  # A list or an object that is no JSON.
        found = [(name, "json_invalid") for name in re.findall(r'field "(\w+)"', str(error))[:1]]
    fields, sentences = variables(kind), {}
    for name, problem in found or [("", "")]:
        field = fields.get(name.upper())
        if field is None:
            told = "The settings contradict each other"
        elif wanted := field.description or _expected(field):
            missing = "is not set; it " if problem == "missing" else ""
            told = f"{name.upper()} {missing}must be {wanted}"
        else:
            told = f"{name.upper()} cannot be used ({problem})"
        sentences[name.upper()] = f"{told}."
    return sentences


def _expected(field: FieldInfo) -> str:
    """Return what the values of a field are, in words; "" if its type has none."""
    try:
        annotated: Any = Annotated[(field.annotation, Field(), *field.metadata)]
        schema = TypeAdapter(annotated).json_schema()
    except PydanticInvalidForJsonSchema:
        return ""
    # Of `int | None`, the first.
    one = schema.get("anyOf", [schema])[0]
    one = schema["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
    if choices := one.get("enum", [one["const"]] if "const" in one else []):
        *others, last = map(str, choices)
        return f"{', '.join(others)} or {last}" if others else last
    if (form := one.get("format", "password")) != "password":
        return _WORDS.get(form, f"a {form}")
    words = _WORDS.get(one.get("type", ""), "")
    if "minimum" in one and "maximum" in one:
        return f"{words} from {one['minimum']} to {one['maximum']}"
    limits = [told.format(one[key]) for key, told in _LIMITS.items() if key in one]
    return words and "".join([words, *limits])


_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "uri": "a URL",
    "array": 'a list such as ["one", "two"]',
    "object": 'an object such as {"name": "value"}',
}
_LIMITS = {
    "minimum": ", at least {}",
    "maximum": ", at most {}",
    "exclusiveMinimum": ", more than {}",
    "exclusiveMaximum": ", less than {}",
    "minLength": ", at least {} characters",
}
