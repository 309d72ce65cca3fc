"""Loads a hook the way cookiecutter runs it: rendered with answers first. Its functions can then be called."""

from collections.abc import Mapping
from types import ModuleType

from cookiecutter.environment import StrictEnvironment

from tests.support.bakery import ROOT


def load_hook(name: str, answers: Mapping[str, str]) -> ModuleType:
    """The module `hooks/<name>.py` with these answers in it, imported but not run."""
    source = (ROOT / "hooks" / f"{name}.py").read_text(encoding="ascii")
    environment = StrictEnvironment(context={"cookiecutter": {}})
    rendered = environment.from_string(source).render(cookiecutter=dict(answers))
    module = ModuleType(name)
    exec(compile(rendered, f"{name}.py", "exec"), module.__dict__)  # noqa: S102
    return module
