"""Importing the app opens no file, socket or database, whatever DATABASE_URL says."""

import json
import sys
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

def watch_import():
    sys.addaudithook(hook)
    import src.main
    return seen
"""

ONE = """
print(json.dumps([watch_import(), [name for name in sys.modules if name.partition(".")[0] != "src"]]))
"""

# The libraries, which know nothing of DATABASE_URL, are imported once; each child imports the app with another value.
MANY = """
import importlib

with open(sys.argv[1]) as file:
    values, libraries = json.load(file)
for name in libraries:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # such as those of `six`, which are nowhere but in sys.modules
assert not [name for name in sys.modules if name.partition(".")[0] == "src"]
for kind, value in values.items():
    if os.fork() == 0:
        os.environ["DATABASE_URL"] = value
        print(json.dumps([kind, watch_import()]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, kind
"""

VALUES = {
    "empty": "",
    "sqlite": "sqlite:///./data/app.db",
    "postgresql": "postgresql://app:secret@127.0.0.1:1/app",
    **{kind: value for kind, (value, _) in BROKEN.items()},
}


def test_importing_the_app_opens_nothing_whatever_the_url_is(bake: Bakery, tmp_path: Path) -> None:
    project = bake().copy_to(tmp_path)
    opened, libraries = json.loads(project.run(sys.executable, "-c", WATCH + ONE).stdout)
    assert opened == []
    values_file = tmp_path / "values"
    values_file.write_text(json.dumps([VALUES, libraries]))
    done = project.run(sys.executable, "-c", WATCH + MANY, str(values_file))
    assert dict(map(json.loads, done.stdout.splitlines())) == {kind: [] for kind in VALUES}
    assert not (project.path / "data").exists()


def test_importing_the_app_with_its_libraries_for_postgresql_opens_nothing(bake: Bakery, tmp_path: Path) -> None:
    project = bake().copy_to(tmp_path)
    environ = {"DATABASE_URL": VALUES["postgresql"]}
    assert json.loads(project.run(sys.executable, "-c", WATCH + ONE, environ=environ).stdout)[0] == []
    assert not (project.path / "data").exists()
