"""Reads files back with the parsers that will meet them."""

import configparser
import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support.bakery import BakedProject
from tests.support.project_tools import project_tool


def front_matter(project: BakedProject) -> str:
    """The YAML between the two lines of dashes that open README.md."""
    opening, block, _ = project.read("README.md").split("---\n", 2)
    assert opening == ""
    return block


def front_matter_problems(readme: str, dockerfile: str) -> list[str]:
    """What the project's own check finds in the text of a README."""
    problems: list[str] = project_tool("checks").front_matter_problems(readme, dockerfile)
    return problems


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
