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


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


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
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)
    ] = Field(default="info", description="debug, info, warning, error or critical")
    log_format: Literal["json", "text"] | None = Field(default=None, description="json or text")
    metrics: Literal["on", "off"] = Field(default="on", description="on or off")
    cors_origins: Origins = Field(
        default="",
        description="comma-separated origins such as https://example.com, without a path, or *",
    )
    cors_credentials: Literal["on", "off"] = Field(
        default="off", description="off, or on where CORS_ORIGINS names origins, not *"
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


def read_space(environ: Mapping[str, str] = os.environ) -> Space:
    """Return what the Hub says about this Space."""
    return Space(id=environ.get("SPACE_ID") or None, host=environ.get("SPACE_HOST") or None)


def _sentences(
    kind: type[RuntimeSettings], error: SettingsError | ValidationError
) -> dict[str, str]:
    """Return a sentence for each variable, none of them pydantic's: those may contain the value."""
    fields = variables(kind)
    sentences: dict[str, str] = {}
    for name, code in _problems(error):
        field = fields.get(name)
        if field is None:
            told = "The settings do not go together, as a validator of theirs found out"
        elif wanted := field.description or _expected(field):
            told = f"{name} {'is not set; it ' if code == 'missing' else ''}must be {wanted}"
        else:
            told = f"{name} cannot be used ({code})"
        sentences[name] = f"{told}."
    return sentences


def _problems(error: SettingsError | ValidationError) -> list[tuple[str, str]]:
    """Return the variables, in capitals, and what is wrong with them in a word."""
    if isinstance(error, ValidationError):
        return [
            (str(problem["loc"][0]).upper() if problem["loc"] else "", problem["type"])
            for problem in error.errors()
        ]
    # A list or an object that is no JSON.
    field = re.search(r'field "(\w+)"', str(error))
    return [(field[1].upper() if field else "", "json_invalid")]


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
    if choices := one.get("enum", [one["const"]] if "const" in one else None):
        return " or ".join(filter(None, [", ".join(map(str, choices[:-1])), str(choices[-1])]))
    least, most = one.get("minimum"), one.get("maximum")
    limits = {
        " from {} to {}": (least, most),
        ", at least {}": (least,),
        ", at most {}": (most,),
        ", more than {}": (one.get("exclusiveMinimum"),),
        ", less than {}": (one.get("exclusiveMaximum"),),
        ", at least {} characters": (one.get("minLength"),),
    }
    told = (text.format(*values) for text, values in limits.items() if None not in values)
    if (form := one.get("format", "password")) != "password":
        return _WORDS.get(form, f"a {form}")
    what = _WORDS.get(one.get("type", ""), "")
    return what and what + next(told, "")


_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "uri": "a URL",
    "array": 'a list such as ["one", "two"]',
    "object": 'an object such as {"name": "value"}',
}
