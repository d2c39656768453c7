"""What a browser may ask of the server.

What Gradio leaves open is closed here. A foreign site whose name is made to point at this machine
(DNS rebinding) has another `Host`, a foreign page that sends requests here another `Origin`. Only
the addresses that the page itself uses are served, as others fetch addresses on a visitor's
behalf, and a message may name no file but an uploaded one. Pages are told to fetch nothing from
elsewhere.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stylesr_jax.web.photos import MAX_BYTES

MAX_MESSAGE = 1 << 20  # bytes of a message that is no file
MAX_DRAWING = 1 << 24  # bytes of what the editor sends
API = "/gradio_api"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
UPLOAD, DRAWING = f"{API}/upload", f"{API}/component_server"
CALLS = (
    UPLOAD,
    DRAWING,
    f"{API}/upload_progress",
    f"{API}/queue/join",
    f"{API}/queue/data",
    f"{API}/theme.css",
    f"{API}/app_id",
    f"{API}/startup-events",
    f"{API}/reset",
    f"{API}/cancel",
)
FILE = f"{API}/file="
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
        b"form-action 'self'; base-uri 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


# --- rules ----------------------------------------------------------------------------------


def host_of(authority: str) -> str:
    """The host of a Host header or an address, without its port, in lower case; "" for none."""
    try:
        return urlsplit(authority if "//" in authority else f"//{authority}").hostname or ""
    except ValueError:
        return ""


def is_known(host: str, names: frozenset[str]) -> bool:
    """Whether a host is one of these names, or a number: rebinding needs a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in names
    return True


def is_served(path: str, uploads: Path) -> bool:
    """Whether the page uses this path."""
    if path.startswith(FILE):
        return is_within(unquote(path.removeprefix(FILE)), uploads)
    return path in PAGES or path in CALLS or (path.startswith(FOLDERS) and ".." not in path)


def is_within(file: str, uploads: Path) -> bool:
    """Whether a file's path lies in the folder of uploads and pictures."""
    try:
        return Path(file).resolve().is_relative_to(uploads.resolve())
    except (OSError, ValueError):
        return False


def named_files(message: Any) -> Iterator[str]:
    """The files that a message names, wherever they are in it."""
    if isinstance(message, dict):
        if (path := message.get("path")) is not None:
            yield str(path)
        for value in message.values():
            yield from named_files(value)
    elif isinstance(message, list):
        for value in message:
            yield from named_files(value)


def may_say(body: bytes, uploads: Path) -> bool:
    """Whether a message is JSON that names no file but uploaded ones."""
    try:
        files = list(named_files(json.loads(body or b"null")))
    except (ValueError, RecursionError):
        return False
    return all(is_within(file, uploads) for file in files)


# --- the application ------------------------------------------------------------------------


class Guard:
    """An ASGI application before another one."""

    def __init__(self, app: Any, *, uploads: Path, names: tuple[str, ...] = ()) -> None:
        """`names`: of the server, beside localhost and all that are numbers."""
        self.app, self.uploads = app, uploads
        self.names = frozenset({"localhost", *map(str.lower, names)})

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        if refusal := self._refusal(scope, headers):
            return await _refuse(send, *refusal)
        if scope["method"] == "POST" and scope["path"] not in (UPLOAD, DRAWING):
            body = await _body(receive)
            if not may_say(body, self.uploads):
                return await _refuse(send, 403, "only uploaded files can be named")
            receive = _again(body, receive)
        return await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Message, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = host_of(headers.get("host", ""))
        if not is_known(host, self.names):
            return 403, "the page is not known by this name; see --allow-host"
        if "origin" in headers and host_of(headers["origin"]) not in {host, *self.names}:
            return 403, "pages of other sites may not use this one"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST"
        if not is_served(scope["path"], self.uploads):
            return 404, "there is nothing here"
        if scope["method"] == "POST":
            return _refusal_of_body(scope["path"], headers)
        return None


def _refusal_of_body(path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    most = {UPLOAD: MAX_BYTES + MAX_MESSAGE, DRAWING: MAX_DRAWING}.get(path, MAX_MESSAGE)
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return 411, "the message does not say its length"
    if int(length) > most:
        return 413, f"more than {most >> 20} MB"
    form = headers.get("content-type", "").startswith("multipart/form-data")
    if path in (UPLOAD, DRAWING) and not form:
        return 415, "files are sent in forms"
    return None


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _with_headers(send: Send) -> Send:
    """Sends HEADERS with every response."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return send_more


async def _body(receive: Receive) -> bytes:
    """The whole body of a message, whose length was checked."""
    parts, more = [], True
    while more:
        part = await receive()
        parts.append(part.get("body", b""))
        more = part.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What receives a body that was read already, then what follows it."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again
