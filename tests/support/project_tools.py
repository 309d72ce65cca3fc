"""The tools of the project, where they stand: their package is named like the one of this repository."""

import importlib
from typing import Any

import tools
from tests.support.bakery import ROOT, TEMPLATE_FOLDER


def project_tool(name: str) -> Any:
    """One of the modules in the project's `tools`."""
    folder = str(ROOT / TEMPLATE_FOLDER / "tools")
    if folder not in tools.__path__:
        tools.__path__.append(folder)
    return importlib.import_module(f"tools.{name}")
