"""The page as a server that keeps nothing, calls nobody and answers nothing but the page.

Gradio would write uploads to a folder of its own, fetch what a request names, and count its users. Here a picture
comes within a question and goes with its answer; every route that the page does not need is closed; the browser is
told to load nothing from elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from lvlm_guard.play.backend import Backend

MOST_BODY = 32 << 20
"""Bytes of a request: a picture of `pictures.MOST_BYTES` in base64, and a question."""

_API = "/gradio_api/"
OPEN = frozenset(
    {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"}
    | {_API + name for name in ("queue/join", "queue/data", "startup-events", "app_id", "cancel", "reset")}
)
OPEN_BELOW = ("/assets/", "/static/", _API + "heartbeat/")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'"
)

COLOURS = {
    "body_background_fill": "paper",
    "body_text_color": "ink",
    "body_text_color_subdued": "soft",
    "background_fill_primary": "card",
    "background_fill_secondary": "paper",
    "block_background_fill": "card",
    "block_border_color": "line",
    "block_label_text_color": "soft",
    "block_title_text_color": "ink",
    "block_info_text_color": "soft",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "input_background_fill": "paper",
    "input_border_color": "line",
    "input_border_color_focus": "accent",
    "checkbox_label_background_fill": "paper",
    "checkbox_label_background_fill_hover": "weighed",
    "checkbox_label_background_fill_selected": "weighed",
    "checkbox_label_text_color_selected": "ink",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "soft",
    "checkbox_border_color_selected": "accent",
    "checkbox_border_color_focus": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent",
    "button_primary_text_color": "card",
    "button_secondary_background_fill": "card",
    "button_secondary_background_fill_hover": "weighed",
    "button_secondary_text_color": "ink",
    "button_secondary_border_color": "line",
    "slider_color": "accent",
    "panel_background_fill": "card",
    "table_even_background_fill": "card",
}
"""Gradio's colours -> those of `lvlm_guard/report/style.css`."""

Message = dict[str, Any]
Asgi = Callable[[Message, Callable[[], Any], Callable[[Message], Any]], Any]


class Fence:
    """Lets the page's own requests through, up to `MOST_BODY` bytes, and no others.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        """Answer one request, or one event of the server's life."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path in OPEN or path.startswith(OPEN_BELOW)):
            await _refuse(send, 404, f"{path} is closed: this server answers its page alone.")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_BODY:
            await _refuse(send, 413, f"The request is larger than {MOST_BODY:,} bytes: send a smaller picture.")
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message: Message = await receive()
            read += len(message.get("body", b""))
            # without a length a body may go on for ever; to the app it ends like one whose sender left
            return {"type": "http.disconnect"} if read > MOST_BODY else message

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                told += [(b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        await self._app(scope, counted, marked)


async def _refuse(send: Callable[[Message], Any], status: int, words: str) -> None:
    raw = json.dumps({"error": words}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": raw})


def make_app(backend: Backend) -> Fence:
    """Return the page of a backend as an ASGI app; raises `MissingExtraError` where gradio is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported
    try:
        import fastapi
        import gradio as gr
    except ImportError as error:
        raise MissingExtraError(
            f"The playground needs gradio, which can't be imported ({error}). Install it: "
            "pip install 'lvlm-guard[play]'."
        ) from error
    from lvlm_guard.play import drawing
    from lvlm_guard.play.page import Page

    # the reports' colours, which change with light and dark by themselves, and the system's fonts
    theme = gr.themes.Base(
        neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="lg"
    ).set(**{name + dark: f"var(--{colour})" for name, colour in COLOURS.items() for dark in ("", "_dark")})
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        Page(backend).blocks,
        path="/",
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        head=f"<style>{drawing.style(backend.methods)}</style>",
        # its group of boxes has a title beside it, which screen readers do not read as its name
        js="() => document.querySelector('#methods')?.setAttribute('aria-label', 'Methods to compare')",
        max_file_size=1,  # the route is closed too
    )
    return Fence(app)


def run(backend: Callable[[], Backend], host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        backend: makes who answers; called once the address is taken, for a model takes time to load.
        host, port: where to listen; port 0 for any free one.
        ready: is told the page's address once it can be opened.

    Raises:
        OSError: the address is not free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening, tempfile.TemporaryDirectory() as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch  # gradio makes a folder there when it is imported
        app = make_app(backend())
        import uvicorn

        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
