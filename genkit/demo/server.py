"""The server of `genkit demo`."""

from __future__ import annotations

import importlib.util
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
# What Gradio and the library of the hub read from the environment.
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
    except OSError as error:
        raise OptionError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another --port"
        ) from error


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser of this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
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
    from genkit.demo.page import page

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
    )


def serve(app: Any, listener: socket.socket) -> None:
    """Answer browsers until Ctrl-C, which is then raised as `KeyboardInterrupt`."""
    import uvicorn

    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_PATIENCE)
    uvicorn.Server(config).run(sockets=[listener])


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(1)
