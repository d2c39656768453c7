"""What a browser may ask for, without a server."""

import asyncio
import json

import pytest

from stylesr_jax.web.guard import (
    CALLS,
    MAX_MESSAGE,
    UPLOAD,
    Guard,
    host_of,
    is_known,
    is_within,
    may_say,
)

HOST = (b"host", b"127.0.0.1:7860")


async def _page(scope, receive, send):
    """An application that sends back what it is sent."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def ask(tmp_path):
    """Sends a request through the guard: its status, and all that comes back."""
    guard = Guard(_page, uploads=tmp_path, names=("faces.example",))

    def call(path, *headers, method="GET", body=b""):
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        if method == "POST":
            headers = (*headers, (b"content-length", str(len(body)).encode()))
        scope = {"type": "http", "method": method, "path": path, "headers": [HOST, *headers]}
        asyncio.run(guard(scope, receive, send))
        return sent[0]["status"], sent

    return call


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("127.0.0.1:7860", "127.0.0.1"),
        ("Localhost", "localhost"),
        ("[::1]:7860", "::1"),
        ("http://evil.example:7860", "evil.example"),
        ("null", "null"),
        ("", ""),
        ("[", ""),
    ],
)
def test_hosts(authority, host):
    assert host_of(authority) == host


def test_names_must_be_known_and_numbers_are():
    names = frozenset({"localhost"})
    assert is_known("localhost", names) and is_known("192.168.1.5", names)
    assert is_known("::1", names)
    assert not any(is_known(one, names) for one in ("evil.example", "127.0.0.1.evil.example", ""))


def test_the_page_is_served_under_its_names_only(ask):
    assert ask("/")[0] == 200
    assert ask("/", (b"host", b"faces.example"))[0] == 200
    assert ask("/", (b"host", b"evil.example:7860"))[0] == 403


def test_pages_of_other_sites_are_refused(ask):
    own = (b"origin", b"http://127.0.0.1:7860")
    assert ask("/", own)[0] == 200
    proxied = (b"origin", b"https://faces.example")  # a proxy that passes on its own Host
    assert ask("/", proxied)[0] == 200
    for other in (b"http://evil.example", b"null", b"http://192.168.1.9"):
        assert ask("/", (b"origin", other))[0] == 403


def test_only_what_the_page_uses_is_served(ask):
    for path in ("/", "/config", "/assets/index.js", "/gradio_api/heartbeat/abc", *CALLS):
        assert ask(path)[0] == 200, path
    for path in (
        "/gradio_api/proxy=http://evil.example",
        "/gradio_api/run/predict",
        "/gradio_api/vibe-code",
        "/gradio_api/run-history/connect",
        "/assets/../secret",
        "/openapi.json",
        "/monitoring",
    ):
        assert ask(path)[0] == 404, path
    assert ask("/", method="DELETE")[0] == 405


def test_only_files_of_the_page_are_read(ask, tmp_path):
    inside = tmp_path / "picture.png"
    assert ask(f"/gradio_api/file={inside}")[0] == 200
    for path in ("/etc/passwd", f"{tmp_path}/../x", "http://evil.example/", "%2Fetc%2Fpasswd", ""):
        assert ask(f"/gradio_api/file={path}")[0] == 404, path


def test_links_that_lead_out_are_followed_before_they_are_judged(tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link").symlink_to("/etc/passwd")
    assert not is_within(str(uploads / "link"), uploads)
    assert is_within(str(uploads / "new"), uploads) and not is_within("\0", uploads)


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "https://evil.example/x.png", 5, ["x"]])
def test_messages_name_no_file_but_uploaded_ones(ask, tmp_path, file):
    body = json.dumps({"data": [{"a": [{"path": file, "meta": {}}]}]}).encode()
    path = "/gradio_api/queue/join"
    assert ask(path, method="POST", body=body)[0] == 403
    good = json.dumps({"data": [{"path": str(tmp_path / "a.png")}, None, 3]}).encode()
    status, sent = ask(path, method="POST", body=good)
    assert status == 200 and sent[1]["body"] == good


def test_messages_are_json_and_short(ask, tmp_path):
    path = "/gradio_api/queue/join"
    assert ask(path, method="POST", body=b"path=/etc/passwd")[0] == 403
    assert ask(path, method="POST", body=b"[" * 100_000)[0] == 403
    assert ask(path, method="POST", body=b" " * (MAX_MESSAGE + 1))[0] == 413
    assert ask(path, (b"content-length", b"chunked"), method="GET")[0] == 200
    assert may_say(b"", tmp_path)


def test_uploads_are_forms_of_a_length_that_is_known(ask):
    form = (b"content-type", b"multipart/form-data; boundary=x")
    assert ask(UPLOAD, form, method="POST", body=b"x")[0] == 200
    assert ask(UPLOAD, method="POST", body=b"x")[0] == 415


def test_pages_fetch_nothing_from_elsewhere(ask):
    _, sent = ask("/")
    policy = dict(sent[0]["headers"])[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self'") and "http" not in policy
