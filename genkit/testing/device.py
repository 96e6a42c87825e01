"""Checks on a pretend GPU, in a process of its own.

`python -m genkit.testing.device FOLDER` repeats the checks of `FOLDER/checks.json`, a list of
[check, component, arguments, options], and writes `FOLDER/found.json`: for each a sentence, empty
if the check passes.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import genkit.testing.pretend as pretend
import genkit.testing.tools as tools

# A check's name, the component's, further arguments, and options.
Check = tuple[str, str, Sequence[Any], dict[str, Any]]
_MISSING = "missing"


def also(kind: str, name: str, *args: Any, **options: Any) -> None:
    """Repeat the check of a component on a pretend GPU; `AssertionError` if it fails there.

    A warning says why if it cannot be repeated.
    """
    __tracebackhide__ = True
    if tools.DEVICE.type != "cpu":
        return
    reason = pretend.lacking()
    found = "" if reason else on_device([(f"check_{kind}", name, args, options)])[0]
    if found == _MISSING:
        reason = f"a new process does not find the {kind} '{name}', which no package provides"
    if reason:
        warnings.warn(f"not checked on a pretend GPU: {reason}", stacklevel=3)
    elif found:
        raise AssertionError(found)


def on_device(checks: Sequence[Check]) -> list[str]:
    """A sentence for each check on what fails on a pretend GPU; empty if it passes."""
    __tracebackhide__ = True
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "checks.json").write_text(json.dumps(checks, default=str), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "genkit.testing.device", folder],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = ([line for line in done.stderr.splitlines() if line.strip()] or ["nothing"])[-1]
            raise AssertionError(f"the process with a pretend GPU ended with: {last}")
        found: list[str] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return found


def _repeat(check: Check) -> str:
    from genkit.plugin.registry import registry

    function, name, args, options = check
    kind = function.removeprefix("check_")
    if name not in registry().names(kind):
        return _MISSING
    own = {"processes": 1} if kind in ("metric", "quantizer") else {}
    try:
        getattr(importlib.import_module("genkit.testing"), function)(name, *args, **options, **own)
    except Exception as error:  # A third party's code can raise anything.
        return _sentence(kind, name, error)
    return ""


def _sentence(kind: str, name: str, error: Exception) -> str:
    cause: BaseException | None = error
    while cause and not isinstance(cause, pretend.Mixed):
        cause = cause.__cause__
    if cause:
        return (
            f"the {kind} '{name}' would fail on a GPU: {cause}; make its tensors on the device of "
            "its inputs, or register them as buffers"
        )
    if isinstance(error, AssertionError):
        return f"the {kind} '{name}' fails on a pretend GPU: {error}"
    return "".join(traceback.format_exception(error)[-3:])


def main(folder: str) -> None:
    """Repeat the checks of a folder."""
    checks = json.loads(Path(folder, "checks.json").read_text(encoding="utf-8"))
    pretend.start()
    tools.DEVICE = torch.device(pretend.NAME)
    found = [_repeat(check) for check in checks]
    Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
