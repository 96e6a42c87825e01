"""The server of `genkit demo`."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from genkit.errors import GenkitError, OptionError
from genkit.plugin.installing import to_install
from genkit.signals import stop_signals

if TYPE_CHECKING:
    from genkit.prior import Prior
    from genkit.tokenizer import Tokenizer

# Seconds that an open page may delay the end.
_PATIENCE = 1
# Addresses of no machine, reserved for documentation.
_ELSEWHERE = {socket.AF_INET: "203.0.113.1", socket.AF_INET6: "2001:db8::1"}
# Environment variables that turn off the telemetry of Gradio and of the hub's library.
_PRIVATE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def check_gradio() -> None:
    """`GenkitError` if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise GenkitError(
            f"the demo needs Gradio, which is not installed: {to_install('genkit-vq[demo]')}"
        )


def listening(host: str, port: int | None) -> socket.socket:
    """A socket that listens on a port of a host, by default on a free one.

    `OptionError` if the host is not this machine's, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4], family=found[0])
    except (socket.gaierror, UnicodeError) as error:
        raise _unusable(host, "the name is not known") from error
    except OSError as error:
        # The error's own text ends with the address as Python writes it.
        reason = str(error.strerror).partition(" (")[0]
        if error.errno == errno.EADDRNOTAVAIL:
            raise _unusable(host, "this machine does not have it") from error
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise _unusable(host, reason) from error
        raise OptionError(
            f"cannot listen on port {port} of {host}: {reason}; choose another --port"
        ) from error


def _unusable(host: str, reason: str) -> OptionError:
    return OptionError(f"cannot listen on address '{host}': {reason}; choose another --host")


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser of this machine."""
    host, port = listener.getsockname()[:2]
    return _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def address_for_others(listener: socket.socket) -> str:
    """The address to open in a browser of another machine; empty if none can reach it."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_loopback:
        return ""
    return _url(_outward(listener.family) if host in ("0.0.0.0", "::") else host, port)


def _outward(family: socket.AddressFamily) -> str:
    """The address of this machine in its network, or else its name."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # It sends nothing, and only chooses the address to send from.
            probe.connect((_ELSEWHERE[family], 9))
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def private() -> Iterator[None]:
    """Gradio without telemetry, with uploads in a folder that is deleted at the end.

    It begins before Gradio is imported, and sets environment variables. A signal to stop, too, ends
    the process only after this context.
    """
    before = dict(os.environ)
    handlers = {each: signal.signal(each, _end) for each in stop_signals()}
    with tempfile.TemporaryDirectory(prefix="genkit-demo-") as folder:
        os.environ.update(_PRIVATE, GRADIO_TEMP_DIR=folder)
        try:
            yield
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
            for name in (*_PRIVATE, "GRADIO_TEMP_DIR"):
                os.environ.pop(name)
                os.environ.update({name: before[name]} if name in before else {})


def application(model: Tokenizer | Prior, name: str) -> Any:
    """The page of a model as an ASGI application, which asks nothing of other machines."""
    from fastapi import FastAPI
    from gradio import mount_gradio_app, themes

    from genkit.demo.figures import CSS
    from genkit.demo.page import JS, page

    # Fonts of the system: Gradio would serve others.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page(model, name),
        "/",
        footer_links=[],
        show_error=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        ssr_mode=False,
        theme=themes.Default(primary_hue="blue", **fonts),
        css=CSS,
        js=JS,
    )


def serve(app: Any, listener: socket.socket) -> None:
    """Answer browsers until Ctrl-C, which is then raised as `KeyboardInterrupt`."""
    import uvicorn

    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_PATIENCE)
    uvicorn.Server(config).run(sockets=[listener])


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(1)
