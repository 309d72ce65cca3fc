"""Processes that find their disks read-only, or full, in a mount namespace of their own."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import pytest

from tests.support.machine import NAMESPACES, built_to_preload, need

_SEAL = 'while read -r _ point _; do mount -o remount,bind,ro "$point" 2>/dev/null; done </proc/self/mounts'
QUOTA = Path(__file__).with_name("quota.c")
_UNSHARE = ["unshare", "--map-root-user", "--mount"]


def read_only(*, writable: str | None = None) -> list[str]:
    """A prefix for a command that can write nowhere, or only to the empty folder `writable`."""
    mount = f"; mount -t tmpfs -o size=64m none {writable}" if writable else ""
    return in_namespace(f"{_SEAL}{mount}")


def small(folder: str, *, kilobytes: int, full_beside: str | None = None) -> list[str]:
    """A prefix for a command that finds a small empty disk at `folder`.

    With `full_beside`, it holds a copy of what is in that folder, and a file `filler` that takes all the rest.
    """
    fill = f"; cp {full_beside}/* {folder}; cat /dev/zero >{folder}/filler 2>/dev/null" if full_beside else ""
    return in_namespace(f"mount -t tmpfs -o size={kilobytes}k none {folder}{fill}")


def with_quota(folder: Path, most_bytes: int, *, library_in: Path) -> dict[str, str]:
    """The environment of a process that may have so much in `folder`; what is beyond it fails as by a quota.

    A quota of the kernel's own needs a disk of its own, and whoever mounts that is exempt.
    """
    library = built_to_preload(QUOTA, library_in, "a process over its quota on a disk")
    quota = {"FOLDER_WITH_QUOTA": str(folder.resolve()), "QUOTA_BYTES": str(most_bytes)}
    return {"LD_PRELOAD": str(library)} | quota


def is_in_a_layer(folder: Path) -> bool:
    """Whether a folder is in the layer of a container, which ends with the container."""
    kinds = {disk.mountpoint: disk.fstype for disk in psutil.disk_partitions(all=True)}
    point = next(str(parent) for parent in (folder, *folder.parents) if str(parent) in kinds)
    is_in_container = any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
    return kinds[point] in ("overlay", "fuse.fuse-overlayfs") or (point == "/" and is_in_container)


def without_roots_rights() -> list[str]:
    """A prefix for a command that may enter only what its user may enter, even if that is root."""
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@contextmanager
def immutable(files: Sequence[str]) -> Iterator[None]:
    """Files that not even their owner can write to, also through descriptors that are open already."""
    need("chattr", "a file that not even root can write to")
    done = subprocess.run(["chattr", "+i", *files], capture_output=True, check=False)  # noqa: S603, S607
    try:
        if done.returncode != 0:
            pytest.skip(
                "chattr +i does not work here (be root, on ext4, XFS or Btrfs): a file that not even root can write to"
            )
        yield
    finally:
        subprocess.run(["chattr", "-i", *files], capture_output=True, check=False)  # noqa: S603, S607


def in_namespace(commands: str) -> list[str]:
    """A prefix for a command that runs after these shell commands, whose mounts nobody else sees."""
    if not _can_mount():
        pytest.skip(f"this user may not mount in a namespace ({NAMESPACES}): disks that are full or read-only")
    return [*_UNSHARE, "sh", "-c", f'{commands}; exec "$@"', "sh"]


@cache
def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(  # noqa: S603
        [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0
