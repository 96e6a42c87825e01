"""Another project's package that is also called genkit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import genkit_command

from genkit.plugin.installing import to_install

ROOT = Path(__file__).parent.parent


def test_another_projects_package_of_that_name_is_reported(tmp_path: Path) -> None:
    (tmp_path / "other" / "genkit").mkdir(parents=True)
    (tmp_path / "other" / "genkit" / "__init__.py").write_text("import no_such_module\n")
    done = genkit_command("--version", cwd=tmp_path, PYTHONPATH=str(tmp_path / "other"))
    assert done.returncode == 1
    pip = to_install().removesuffix(" install ")
    assert done.stderr == (
        f"Error: the package 'genkit' in {tmp_path / 'other' / 'genkit'} is another project's, and "
        f"this command needs genkit-vq's: {pip} uninstall genkit, then {pip} install "
        "--force-reinstall --no-deps genkit-vq (or the folder of its clone)\n"
    )


def test_a_package_without_its_init_file_is_reported(tmp_path: Path) -> None:
    """pip leaves this behind when the other project of that name is uninstalled."""
    (tmp_path / "genkit").mkdir()
    (tmp_path / "genkit" / "run.py").touch()
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'cli')!r}, {str(tmp_path)!r}]; import genkit_cli"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the package 'genkit' is incomplete; another")
    assert done.stderr.count("\n") == 1
