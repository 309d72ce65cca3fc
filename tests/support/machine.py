"""What a machine has. What it lacks is skipped by name, or fails where REQUIRE_EVERYTHING is set."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

REQUIRE_EVERYTHING = bool(os.environ.get("REQUIRE_EVERYTHING"))
# What lets a process have a network or mounts of its own.
NAMESPACES = "apt install util-linux; on Ubuntu, sysctl --write kernel.apparmor_restrict_unprivileged_userns=0"
# Debian's packages, where they are not named like the program.
PACKAGES = {"cc": "gcc libc6-dev", "chattr": "e2fsprogs", "node": "nodejs", "unshare": "util-linux"}


def need(program: str, purpose: str) -> str:
    """The path of a program, or a skipped test that says what to install, and what it would have been good for."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (apt install {PACKAGES.get(program, program)}): {purpose}")
    return found


def built_to_preload(source: Path, folder: Path, purpose: str) -> Path:
    """The library for LD_PRELOAD that this C file gives, in `folder`, or a skipped test."""
    library = folder / f"{source.stem}.so"
    done = subprocess.run(  # noqa: S603
        [need("cc", purpose), "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cc does not work here (apt install gcc libc6-dev): {done.stderr}")
    return library


def base_image(version: str) -> str:
    """The full name of the image that ours are based on."""
    return f"docker.io/library/python:{version}-slim"


def need_base_image(version: str) -> str:
    """The container engine, with which the base of the image for this Python is here, or a skipped test."""
    engine = container_engine()
    if engine is None:
        pytest.skip("neither docker nor podman works here (apt install podman): no image can be built")
    for how in (["image", "inspect"], ["pull", "--quiet"]):
        if subprocess.run([engine, *how, base_image(version)], capture_output=True, check=False).returncode == 0:  # noqa: S603
            return engine
    pytest.skip(f"an image of Python is not here ({engine} pull {base_image(version)}): no image can be built")


@cache
def container_engine() -> str | None:
    """`docker` or `podman`, whichever works first. A docker client without its daemon does not."""
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            done = subprocess.run([engine, "info"], capture_output=True, check=False)  # noqa: S603
            if done.returncode == 0:
                return engine
    return None


@cache
def can_unshare_network() -> bool:
    """Whether a process may be started without any network."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", "true"],  # noqa: S607
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
