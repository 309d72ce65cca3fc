"""Your settings, each an environment variable. List yours in .env.example with the runtime's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from space_runtime import settings as runtime_settings

PROJECT_ROOT = Path(__file__).resolve().parents[2]


class Settings(runtime_settings.RuntimeSettings):
    """Add a field for each setting of your own; its description completes "NAME must be ...".

    With `max_tokens: int = Field(default=256, ge=1, description="a whole number from 1 on")` the
    variable MAX_TOKENS is read, and with a bad value the application exits, saying so in one line.
    """


def load_settings() -> Settings:
    """Return the settings, or exit with one line that names each bad variable, never its value."""
    return runtime_settings.load(Settings)


def setting_problems(variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence about each of these variables with which the application cannot start."""
    return runtime_settings.problems(Settings, variables)
