"""Installs the packages that tests/javascript names."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.bakery import ROOT
from tests.support.machine import need


def installed_packages() -> Path:
    """A copy of the scripts beside the packages, which are installed once and kept; skip where that cannot be done."""
    npm = need("npm", "it installs what tests/javascript names")
    sources = sorted(path for path in (ROOT / "tests" / "javascript").iterdir() if path.is_file())
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = ROOT / ".tools" / f"javascript-{version}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "javascript.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            install(npm, sources, folder)
    return folder


def install(npm: str, sources: list[Path], folder: Path) -> None:
    """Install them somewhere else first, so that `folder` is there only when it is whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        beginning = Path(temporary, folder.name)
        beginning.mkdir()
        for source in sources:
            shutil.copy(source, beginning)
        command = [npm, "ci", "--no-audit"]
        installed = subprocess.run(command, cwd=beginning, capture_output=True, text=True, check=False)  # noqa: S603
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install js-yaml and axe-core (let it reach its registry): {installed.stderr}")
        beginning.rename(folder)
