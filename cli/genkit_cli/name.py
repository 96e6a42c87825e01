"""A check that `import genkit` imports this project's code.

Another project on the package index has the same name and the same import package. Installed after
this one, it overwrites `genkit/__init__.py`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_MARK = b'__distribution__ = "genkit-vq"'


def check_name() -> None:
    """Exit with an error if the package `genkit` is another project's or incomplete.

    The package is located and read, but not imported.
    """
    spec = importlib.util.find_spec("genkit")
    if spec and spec.origin:
        file = Path(spec.origin)
        if _MARK in file.read_bytes():
            return
        what = f"the package 'genkit' in {file.parent} is another project's"
    else:
        what = "the package 'genkit' is incomplete; another package of that name was removed"
    pip = "pip" if importlib.util.find_spec("pip") else "uv pip"
    sys.exit(
        f"Error: {what}, and this command needs genkit-vq's: {pip} uninstall genkit, then "
        f"{pip} install --force-reinstall --no-deps genkit-vq (or the folder of its clone)"
    )
