"""Reads files back with the parsers that will meet them."""

import configparser
import importlib.util
import json
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.support.bakery import ROOT, TEMPLATE_FOLDER, BakedProject


def front_matter(project: BakedProject) -> str:
    """The YAML between the two lines of dashes that open README.md."""
    opening, block, _ = project.read("README.md").split("---\n", 2)
    assert opening == ""
    return block


def front_matter_problems(readme: str, dockerfile: str) -> list[str]:
    """What the project's own check finds in the text of a README."""
    problems: list[str] = checks().front_matter_problems(readme, dockerfile)
    return problems


@cache
def checks() -> ModuleType:
    """The template's own file, whose package is called as one of ours."""
    spec = importlib.util.spec_from_file_location("project_checks", ROOT / TEMPLATE_FOLDER / "tools" / "checks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(path: Path) -> Any:
    """Parse a file by what its name promises; a file of another kind need only be text."""
    text = path.read_bytes().decode("utf-8")
    match path.suffix:
        case ".py":
            return compile(text, str(path), "exec")
        case ".toml":
            return tomllib.loads(text)
        case ".json":
            return json.loads(text)
        case ".yml" | ".yaml":
            return list(yaml.safe_load_all(text))
        case ".ini":
            parser = configparser.RawConfigParser()
            parser.read_string(text)
            return parser
        case _:
            return text
