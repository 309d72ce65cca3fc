"""How big the image is, how long it takes to build and to start, as multiples of a naive one: `make bench`.

Both images are made of the same project and built, started and asked by turns, so that what else the machine does
meets both alike. The naive one copies everything and then installs the requirements, as many Dockerfiles do.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from benchmarks.load import answers_per_second
from benchmarks.serving import LIST, judge
from tests.support.bakery import Bakery
from tests.support.machine import container_engine
from tests.support.processes import free_port

BUILDS = 3
STARTS = 7
CLIENTS, SECONDS = 16, 2.0

NAIVE = """\
FROM python:{version}-slim
WORKDIR /app
COPY . .
RUN pip install -r requirements.txt
CMD ["uvicorn", "src.main:app", "--host", "0.0.0.0", "--port", "7860"]
"""

MOST = {
    "size over the base, MB": 1.0,
    "cold build, s": 1.25,
    "rebuild after a change of code, s": 0.5,
    "start to the first 200, s": 0.95,
    "memory at rest, MB": 1.05,
    "memory under load, MB": 1.05,
}


@dataclass
class Image:
    """An image, the project that it is built from, and what was measured of it."""

    engine: str
    name: str
    project: Path
    measured: dict[str, list[float]] = field(default_factory=lambda: {what: [] for what in MOST})

    def build(self, *options: str) -> float:
        """Build it, and return the seconds."""
        started = time.perf_counter()
        run(self.engine, "build", *options, "--tag", self.name, str(self.project))
        return time.perf_counter() - started

    def build_twice(self) -> None:
        """Measure a build from nothing but the base, and one after a change of code."""
        self.measured["cold build, s"].append(self.build("--no-cache"))
        with (self.project / "src/main.py").open("a", encoding="utf-8") as file:
            file.write(f"# {time.time_ns()}\n")  # never built before, not even by an earlier run
        self.measured["rebuild after a change of code, s"].append(self.build())

    def start(self) -> None:
        """Measure a start, and the memory before and under load."""
        with self._container() as (container, port, seconds):
            self.measured["start to the first 200, s"].append(seconds)
            wait_until(port, "/health/ready")
            self.measured["memory at rest, MB"].append(self._memory(container))
            answers_per_second(port, CLIENTS, SECONDS, lambda: LIST)
            self.measured["memory under load, MB"].append(self._memory(container))

    @contextmanager
    def _container(self) -> Iterator[tuple[str, int, float]]:
        port = free_port()
        command = ["uvicorn", "src.main:app", "--host", "0.0.0.0", "--port", str(port)]  # noqa: S104
        publish = f"127.0.0.1:{port}:{port}"
        started = time.perf_counter()
        container = run(self.engine, "run", "--detach", "--publish", publish, self.name, *command).strip()
        try:
            wait_until(port, "/health/live")
            yield container, port, time.perf_counter() - started
        finally:
            run(self.engine, "rm", "--force", container)

    def _memory(self, container: str) -> float:
        """The resident memory of the container's first process."""
        status = run(self.engine, "exec", container, "cat", "/proc/1/status")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1000


def run(*command: str) -> str:
    """Run a command, and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_until(port: int, path: str, patience: float = 30) -> None:
    """Wait until the server answers with 200."""
    deadline = time.monotonic() + patience
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=5, trust_env=False) as client:
        while True:
            try:
                if client.get(path).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"No 200 from {path}")
            time.sleep(0.01)


def size(engine: str, name: str) -> int:
    """The size of an image in bytes."""
    return int(run(engine, "image", "inspect", "--format", "{{.Size}}", name))


def measure(engine: str, folder: Path) -> dict[str, Image]:
    """Build and start both images by turns."""
    bake = Bakery(folder)
    version = bake.questions["python_version"][0]
    images = {
        name: Image(engine, f"localhost/bench-{name}", bake().copy_to(folder / name).path) for name in ("naive", "ours")
    }
    naive = images["naive"].project
    (naive / "Dockerfile").write_text(NAIVE.format(version=version), encoding="utf-8")
    (naive / ".dockerignore").unlink()
    try:
        for _, image in itertools.product(range(BUILDS), images.values()):
            image.build_twice()
        for _, image in itertools.product(range(STARTS), images.values()):
            image.start()
        base = size(engine, f"docker.io/library/python:{version}-slim")
        for image in images.values():
            image.measured["size over the base, MB"].append((size(engine, image.name) - base) / 1e6)
    finally:
        for image in images.values():
            subprocess.run([engine, "rmi", "--force", image.name], capture_output=True, check=False)
    return images


def main() -> None:
    """Print medians and ratios; the exit code is 1 when one of them is too high."""
    engine = container_engine()
    if engine is None:
        print("Neither docker nor podman works here: the image was not measured.")
        return
    with tempfile.TemporaryDirectory() as folder:
        images = measure(engine, Path(folder))
    held = []
    print(f"{'':36}" + "".join(f"{name:>10}" for name in images) + f"{'ratio':>10}")
    for what, most in MOST.items():
        naive, ours = (statistics.median(image.measured[what]) for image in images.values())
        print(f"{what:36}{naive:10.2f}{ours:10.2f}{ours / naive:10.2f}")
        held.append(judge(f"{what}, ours / naive", [ours / naive], most, most=True))
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
