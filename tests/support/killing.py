"""An app that kills its own process at one step of its work, as a power cut would."""

from tests.support.bakery import BakedProject

_DEADLY = """
import os, signal
from space_runtime.failback import {module}
from {source} import app

step = {module}.{name}

def deadly(*args, **kwargs):
    if "{moment}" == "after":
        step(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

{module}.{name} = deadly
"""


def app_that_dies(project: BakedProject, moment: str, module: str, name: str, source: str = "src.main") -> str:
    """What to boot for an app that dies `before` or `after` this function of `space_runtime.failback`.

    `source` is the module with the app.
    """
    (project.path / "deadly.py").write_text(_DEADLY.format(module=module, name=name, moment=moment, source=source))
    return "deadly:app"
