"""Installs the packages that tests/javascript names."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.bakery import ROOT
from tests.support.machine import need


def install_packages(folder: Path) -> Path:
    """Install them beside a copy of the scripts in `folder`, and return it; skip where that cannot be done."""
    npm = need("npm", "it installs what tests/javascript names")
    for source in (ROOT / "tests" / "javascript").iterdir():
        if source.is_file():
            shutil.copy(source, folder)
    installed = subprocess.run([npm, "ci", "--no-audit"], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install js-yaml and axe-core: {installed.stderr}")
    return folder
