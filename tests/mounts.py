"""Small and read-only file systems, mounted for one command."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def in_own_mounts(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount file systems without affecting other processes."""
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        check=False,
    )


def can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and not in_own_mounts("mount -t tmpfs -o size=1m tmpfs /mnt").returncode
    )


MOUNTS = pytest.mark.skipif(not can_mount(), reason="mounting a file system takes root")
