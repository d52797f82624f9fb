"""Disks of a test's own: one whose power can be cut, and one that is small.

Only root can have them, where the kernel lets it; elsewhere their tests are skipped, and say why. Deliberately absent:
what is on them.
"""

import asyncio
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import eventually

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, the same number for every file system that has it
_NOLOGFLUSH = 2
"""Not even the journal is written: what was not synchronised is gone, as when the power goes."""


def _run(program: str, *arguments: str) -> str:
    """Run it; what it complains of, if it does."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed here")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"{program} failed"


def _done(*arguments: str) -> None:
    if complaint := _run(*arguments):
        pytest.skip(f"no disk of one's own here: {complaint}")


class Disk:
    """A file system in a file, mounted."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image, self.path = image, path

    def mount(self) -> None:
        assert not _run("mount", "-o", "loop", str(self.image), str(self.path))

    def synchronise(self) -> None:
        """All that was written until now is there whatever happens."""
        assert not _run("sync", "--file-system", str(self.path))

    def cut(self) -> None:
        """Nothing is written any more, and what was not synchronised never was."""
        there = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(there, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(there)

    def unmount(self) -> bool:
        """Whether nobody had a file open on it any more."""
        return not _run("umount", str(self.path))

    async def power_is_back(self) -> None:
        """Once those who were killed have let go of it."""

        async def is_free() -> bool:
            return await asyncio.to_thread(self.unmount)

        await eventually(is_free)
        self.mount()


def _try_to_cut(disk: Disk) -> None:
    """Once it is known here that it can be done, whatever goes wrong later is a failure and no reason to skip."""
    try:
        disk.cut()
    except OSError as error:
        pytest.skip(f"the power of this file system cannot be cut: {error}")
    assert disk.unmount()
    disk.mount()


@contextmanager
def journaled(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A disk whose power can be cut."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk whose power can be cut")
    disk = Disk(folder / "image", folder / "disk")
    disk.path.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(megabytes << 20)
    _done("mkfs.ext4", "-q", "-F", str(disk.image))
    _done("mount", "-o", "loop", str(disk.image), str(disk.path))
    try:
        _try_to_cut(disk)
        yield disk
    finally:
        _run("umount", "--lazy", str(disk.path))


@contextmanager
def small(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk in memory that is soon full."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    path = folder / "small"
    path.mkdir()
    _done("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))
