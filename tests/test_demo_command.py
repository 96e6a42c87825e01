"""`genkit demo`: its messages, its addresses and its end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import genkit_here, need

from genkit.demo.server import address_for_others, address_of, listening, private
from genkit.errors import OptionError
from genkit.plugin.installing import to_install

LOADING = "Loading PyTorch, Gradio and the model …"


def test_without_gradio_the_command_says_what_to_install(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    made = genkit_here("demo", trained)
    how = to_install("genkit-vq[demo]")
    assert made.returncode == 1
    assert made.stderr == f"Error: the demo needs Gradio, which is not installed: {how}\n"


def test_what_cannot_be_served(trained: Path, tmp_path: Path) -> None:
    need("gradio")
    gone = genkit_here("demo", tmp_path / "gone")
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert "does not exist: name a run directory" in gone.stderr
    with listening("127.0.0.1", None) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        taken = genkit_here("demo", trained, "--port", str(port))
    assert taken.returncode == 2
    assert re.fullmatch(
        rf"Error: cannot listen on port {port} of 127.0.0.1: [^()]+; choose another --port\n",
        taken.stderr,
    )
    wrong = genkit_here("demo", trained, "--device", "nothing").stderr.splitlines()
    assert wrong[0] == LOADING
    assert wrong[1].startswith("Error: --device 'nothing' is not a device")


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b"])
def test_a_host_that_is_not_known(host: str) -> None:
    with pytest.raises(OptionError) as caught, listening(host, 0):
        pass
    assert str(caught.value) == (
        f"cannot listen on address '{host}': the name is not known; choose another --host"
    )


def test_a_host_that_is_another_machine() -> None:
    with (
        pytest.raises(OptionError, match=r"'203\.0\.113\.1': this machine does not have it;"),
        listening("203.0.113.1", 0),
    ):
        pass


def test_the_command_says_who_can_use_the_page(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("gradio")
    monkeypatch.setattr("genkit_cli.commands.demo.application", lambda model, name: None)
    served: list[socket.socket] = []
    monkeypatch.setattr("genkit_cli.commands.demo.serve", lambda app, each: served.append(each))
    own = genkit_here("demo", trained)
    assert (own.returncode, own.stderr) == (0, f"{LOADING}\n")
    assert "other machines" not in own.stdout.lower()
    first, second = genkit_here("demo", trained, "--host", "0.0.0.0").stdout.splitlines()
    (port,) = re.findall(r"^The demo is at http://127\.0\.0\.1:(\d+); press Ctrl-C", first)
    reachable = rf"Other machines can use it without a password, at http://[\w.-]+:{port}\."
    assert re.fullmatch(reachable, second)
    assert "127.0.0.1" not in second
    quiet = genkit_here("demo", trained, "-q")
    assert quiet.stderr == ""
    assert quiet.stdout.startswith("The demo is at")


def test_the_address_for_others_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("genkit.demo.server._ELSEWHERE", {socket.AF_INET: "no address"})
        assert address_for_others(listener) == f"http://{socket.gethostname()}:{port}"


def test_ctrl_c_ends_the_demo(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("gradio")

    def interrupted(app: Any, listener: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genkit_cli.commands.demo.application", lambda model, name: None)
    monkeypatch.setattr("genkit_cli.commands.demo.serve", interrupted)
    ended = genkit_here("demo", trained)
    assert (ended.returncode, ended.stderr) == (130, f"{LOADING}\n\nThe demo has ended.\n")


def test_the_help_imports_neither_torch_nor_gradio() -> None:
    code = (
        "import sys; sys.argv = ['genkit', 'demo', '--help']\n"
        "from genkit_cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    print({'torch', 'gradio', 'numpy', 'uvicorn'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
    assert "--port" in done.stdout


def test_gradios_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    with private():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "mine"
    assert "GRADIO_ANALYTICS_ENABLED" not in os.environ
