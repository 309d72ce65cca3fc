"""Importing the app opens no file, socket or database, whatever DATABASE_URL says."""

import json
from pathlib import Path

import pytest

from tests.support.bakery import Bakery
from tests.test_states import BROKEN

pytestmark = pytest.mark.slow

# Runs in a process of its own, since an audit hook cannot be taken away again.
WATCH = """
import json, os, sys, sysconfig
folders = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"])})
seen = []

def hook(event, arguments):
    if event.startswith(("socket.", "sqlite3.", "subprocess.", "os.mkdir", "os.rename", "os.remove", "shutil.")):
        seen.append([event, repr(arguments)])
    elif event == "open":
        path, mode, flags = arguments
        name = os.path.realpath(path) if isinstance(path, (str, bytes)) else str(path)
        name = os.fsdecode(name)
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        code = name.startswith(folders) or name.endswith((".py", ".pyc"))
        if writes or not (code or name.startswith(("/proc/", "/etc/mime.types", "/etc/localtime", "/usr/share/"))):
            seen.append([event, name, mode, flags])

sys.addaudithook(hook)
import src.main
print(json.dumps(seen))
"""

VALUES = {
    "unset": None,
    "empty": "",
    "sqlite": "sqlite:///./data/app.db",
    "postgresql": "postgresql://app:secret@127.0.0.1:1/app",
    **{kind: value for kind, (value, _) in BROKEN.items()},
}


@pytest.mark.parametrize("kind", VALUES)
def test_importing_the_app_opens_nothing(bake: Bakery, tmp_path: Path, kind: str) -> None:
    project = bake().copy_to(tmp_path)
    value = VALUES[kind]
    done = project.run("python", "-c", WATCH, environ={} if value is None else {"DATABASE_URL": value})
    assert json.loads(done.stdout) == []
    assert not (project.path / "data").exists()
