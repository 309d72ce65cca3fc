"""Your settings, each an environment variable. List yours in .env.example with the runtime's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from space_runtime import settings as runtime_settings

PROJECT_ROOT = Path(__file__).resolve().parents[2]


class Settings(runtime_settings.RuntimeSettings):
    """Add a line for each setting of your own, for example:

        max_tokens: int = 256

    It is read from MAX_TOKENS. With a bad value the application stops at startup and says
    "MAX_TOKENS must be a whole number."; `Field(256, description=...)` says
    what follows "must be" in other words. A secret is `openai_api_key: SecretStr | None = None`:
    without a default, `make test`, `routes` and `migration` need it, too, and read no `.env`.
    """


def load_settings() -> Settings:
    """Return the settings, or exit with one line that names each bad variable, never its value."""
    return runtime_settings.load(Settings)


async def get_settings(connection: HTTPConnection) -> Settings:
    """Return the settings of the application that answers."""
    settings: Settings = connection.app.state.runtime.settings
    return settings


SettingsDep = Annotated[Settings, Depends(get_settings)]
"""The settings, for endpoints."""


def setting_problems(variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each of these variables whose value would stop the application."""
    return runtime_settings.problems(Settings, variables)
