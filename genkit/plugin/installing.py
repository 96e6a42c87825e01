"""How to install what is missing."""

from __future__ import annotations


def to_install(*wanted: str) -> str:
    """The command that installs a requirement, such as `genkit-vq[zoo]`, in this environment.

    Environments that uv creates have no pip.
    """
    import shlex  # An error alone needs it.

    return f"{'pip' if _has_pip() else 'uv pip'} install {shlex.join(wanted)}"


def _has_pip() -> bool:
    from importlib import metadata  # An error alone needs it.

    # To look for its module would make setuptools take its `distutils` out of this process.
    try:
        metadata.distribution("pip")
    except metadata.PackageNotFoundError:
        return False
    return True
