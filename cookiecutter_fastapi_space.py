"""Refuses bad answers as soon as the last one is there: what `_extensions` in cookiecutter.json names.

Nothing is on disk then, and cookiecutter prints nothing after the reason. When a hook refuses, it puts a traceback of
its own below. The rules are the hook's, which sees answers that are replayed from a file, too.
"""

from pathlib import Path
from runpy import run_path

from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment
from jinja2.ext import Extension

HOOK = Path(__file__).with_name("hooks") / "pre_gen_project.py"


class Refusal(Extension):
    """Gives cookiecutter.json the filter `refusal`."""

    def __init__(self, environment: Environment) -> None:
        """Add the filter."""
        super().__init__(environment)
        environment.filters["refusal"] = refuse_bad_answers


def refuse_bad_answers(answers: dict[str, str]) -> str:
    """Return "" if these answers make a Space; otherwise end cookiecutter with what must be changed."""
    refusal: str = run_path(str(HOOK))["refusal"](answers)
    if refusal:
        raise FailedHookException(refusal)
    return ""
