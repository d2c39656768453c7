"""The server: one process, one page, one search at a time."""

import argparse
import socket
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from stylesr_jax.errors import UserError, print_note
from stylesr_jax.generators.mobile.native import compiler
from stylesr_jax.runtime.startup import check_device, configure
from stylesr_jax.web.guard import Guard
from stylesr_jax.web.page import CSS, Page, theme
from stylesr_jax.web.photos import MAX_BYTES
from stylesr_jax.web.searches import Models
from stylesr_jax.web.sessions import Sessions

QUEUE = 20  # events that wait at most; further ones are refused
GRACE = 2  # seconds that open connections have when the server ends


def application(
    models: Models, folder: Path, *, names: tuple[str, ...] = ()
) -> tuple[Guard, Sessions]:
    """The ASGI application, and the sessions behind it.

    Args:
        folder: of uploads and pictures, $GRADIO_TEMP_DIR.
        names: see `Guard`.
    """
    sessions = Sessions(folder)
    blocks = Page(models, sessions).blocks
    blocks.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=2)
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        ssr_mode=False,
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        theme=theme(),
        css=CSS,
    )
    blocks.has_launched = True  # else Gradio takes any file that a message names for an upload
    return Guard(app, uploads=folder, names=names), sessions


def serve(args: argparse.Namespace, folder: Path) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the address cannot be listened at, or the generator cannot be loaded.
    """
    listening = _listen(args.host, args.port)
    compiler.begin_early()
    configure()
    check_device()
    models = Models(generator=args.generator, label=args.label, prior=args.prior)
    app, sessions = application(models, folder, names=(args.host, *args.allow_host))
    for note in models.notes:
        print_note(note)
    host, port = listening.getsockname()[:2]
    _announce(host, port)
    config: Any = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        sessions.forget_all()
        compiler.give_up()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot listen at {host}, port {port} ({reason}); choose another with --port"
        ) from error


def _announce(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"The page is at http://{shown}:{port}/ ; Ctrl-C ends it", flush=True)
    if host not in ("127.0.0.1", "::1"):
        print("Everyone who reaches this address can use the page, over an open line", flush=True)
