"""How to install what is missing."""

from __future__ import annotations

from importlib.util import find_spec


def to_install(*wanted: str) -> str:
    """The command that installs a requirement, such as `genkit-vq[zoo]`, in this environment.

    Environments that uv creates have no pip.
    """
    import shlex  # An error alone needs it.

    return f"{'pip' if find_spec('pip') else 'uv pip'} install {shlex.join(wanted)}"
