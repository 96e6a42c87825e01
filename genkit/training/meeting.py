"""How the processes of a run on one machine find each other; imports no torch."""

from __future__ import annotations

import socket
import sys

# Set in the processes that `genkit train --processes` starts, to the launcher's process id.
LAUNCHED = "GENKIT_LAUNCHED"


def meeting(processes: int) -> dict[str, str]:
    """Environment variables, all but the ranks, for processes that meet on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Here all processes are on this machine, so they talk over its loopback interface.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {
        **loopback,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
