"""How long rendering takes, as a multiple of rendering an empty template: `make bench`.

Both are run by turns as whole `cookiecutter` commands, so that what else the machine does meets both alike.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving import judge
from tests.support.bakery import copy_template

ROUNDS = 25
MOST = 1.3


def seconds(template: Path, home: Path) -> float:
    """Render once into a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cookiecutter", "--no-input", "--output-dir", folder, str(template)]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
        return time.perf_counter() - started


def main() -> None:
    """Print both medians and their ratio; the exit code is 1 when the ratio is too high."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty")
        (empty / "{{cookiecutter.name}}").mkdir(parents=True)
        (empty / "cookiecutter.json").write_text(json.dumps({"name": "nothing"}))
        times: dict[Path, list[float]] = {empty: [], copy_template(Path(folder, "ours")): []}
        for _ in range(ROUNDS + 1):
            for template, measured in times.items():
                measured.append(seconds(template, Path(folder)))
    # The first round fills the caches.
    nothing, ours = (statistics.median(measured[1:]) for measured in times.values())
    print(f"empty template {nothing:.3f} s, this template {ours:.3f} s")
    sys.exit(not judge("rendering this template / an empty one", [ours / nothing], MOST, most=True))


if __name__ == "__main__":
    main()
