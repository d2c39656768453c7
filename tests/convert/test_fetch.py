"""Downloads against a local server that behaves as servers do on bad days."""

import hashlib
import http.server
import re
import threading
import time

import numpy as np
import pytest

from convert import build
from convert import download as module
from convert.download import Model, download, find, model_at, models
from convert.fetch import main
from stylesr_jax.errors import UserError
from stylesr_jax.loading import load_generator
from stylesr_jax.runtime import files, weights
from where import GOLDEN

BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path misbehaves in its own way; `server.seen` records (path, Range header)."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def begin(self, status, length, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.seen.append((self.path, wanted))
        first = sum(path == self.path for path, _ in self.server.seen) == 1
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        body, kind = self.server.body, self.path.strip("/").partition(".")[0]
        if kind == "missing":
            return self.begin(404, 0)
        if kind == "busy" and first:
            return self.begin(503, 0)
        if kind == "html":
            page = b"<!DOCTYPE html><html>Sorry</html>"
            self.begin(200, len(page), Content_Type="text/html; charset=utf-8")
            return self.wfile.write(page)
        if kind == "disguised":
            page = b"<html>Quota exceeded</html>"
            self.begin(200, len(page), Content_Type="application/octet-stream")
            return self.wfile.write(page)
        if kind == "pointer":
            page = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
            self.begin(200, len(page))
            return self.wfile.write(page)
        if kind == "norange":
            start = 0
        if start >= len(body):
            return self.begin(416, 0)
        tag = '"two"' if kind == "changed" and not first else '"one"'
        if start and self.headers.get("If-Range") not in (None, tag):
            start = 0
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if start:
            self.begin(206, len(body) - start, Content_Range=span, ETag=tag)
        else:
            self.begin(200, len(body), ETag=tag)
        if kind == "changed" and first:
            return self.wfile.write(b"\x80" * 100_000)
        if kind in ("cut", "norange") and first:
            return self.wfile.write(body[:100_000])
        if kind == "pieces":
            return self.wfile.write(body[start : start + 70_000])
        if kind == "stall" and first:
            self.wfile.write(body[:100_000])
            self.wfile.flush()
            return self.server.released.wait(20)
        if kind == "dead":
            return self.server.released.wait(20)
        if kind == "drip":
            for i in range(1000):
                if self.server.released.wait(0.05):
                    return None
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
            return None
        if kind == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        return self.wfile.write(body[start:])


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is what several tests are about."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.seen, server.body, server.released = [], BODY, threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{server.server_port}/"
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def model(server, *paths: str, **changes) -> Model:
    values = {
        "name": "test",
        "title": "Test",
        "resolution": 32,
        "classes": 0,
        "dataset": "none",
        "format": "pickle",
        "licence": "none",
        "urls": tuple(server.address + path for path in paths),
        "size": len(BODY),
        "sha256": DIGEST,
    }
    return Model(**{**values, **changes})


def get(model: Model, folder, **options):
    return download(
        model, folder, **{"timeout": 0.5, "attempts": 2, "pause": 0.0, "quiet": True, **options}
    )


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_plain_download(server, tmp_path):
    path = get(model(server, "good.pkl"), tmp_path / "new" / "folder")
    assert path.read_bytes() == BODY
    assert left(path.parent) == ["test.pkl"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", ["cut", "stall", "busy", "norange", "changed"])
def test_a_broken_download_ends_well(kind, known, server, tmp_path):
    unknown = {} if known else {"size": None, "sha256": None}
    path = get(model(server, f"{kind}.pkl", **unknown), tmp_path)
    assert path.read_bytes() == BODY
    assert left(tmp_path) == ["test.pkl"]
    if kind != "busy":
        assert server.seen[1] == (f"/{kind}.pkl", "bytes=100000-")


def test_many_short_pieces(server, tmp_path):
    assert get(model(server, "pieces.pkl"), tmp_path).read_bytes() == BODY
    starts = [wanted for _, wanted in server.seen]
    assert starts == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]


def test_a_later_run_continues(server, tmp_path):
    (tmp_path / "test.pkl.part").write_bytes(BODY[:1000])
    assert get(model(server, "good.pkl"), tmp_path).read_bytes() == BODY
    assert server.seen == [("/good.pkl", "bytes=1000-")]


def test_a_part_that_is_already_complete(server, tmp_path):
    (tmp_path / "test.pkl.part").write_bytes(BODY)
    assert get(model(server, "good.pkl"), tmp_path).read_bytes() == BODY


def test_a_part_longer_than_the_file(server, tmp_path):
    (tmp_path / "test.pkl.part").write_bytes(BODY + b"more")
    assert get(model(server, "good.pkl"), tmp_path).read_bytes() == BODY


def test_a_wrong_part_is_noticed_and_removed(server, tmp_path):
    (tmp_path / "test.pkl.part").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=f"not {DIGEST}; it was removed"):
        get(model(server, "good.pkl"), tmp_path)
    assert get(model(server, "good.pkl"), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("missing", "404"),
        ("html", "HTML page"),
        ("disguised", "quota is used up"),
        ("pointer", "git-lfs pointer"),
        ("corrupt", "sha256 is"),
        ("dead", "gave up after 2 attempts"),
        ("drip", "stalled|gave up"),
    ],
)
def test_what_cannot_be_mended(kind, pattern, server, tmp_path):
    begin = time.monotonic()
    unknown = {"size": None} if kind in ("disguised", "pointer") else {}
    with pytest.raises(UserError, match=pattern) as caught:
        get(model(server, f"{kind}.pkl", **unknown), tmp_path, attempts=2)
    assert time.monotonic() - begin < 15
    assert f"/{kind}.pkl" in str(caught.value)
    assert "by hand" in str(caught.value)
    assert "test.pkl" not in left(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "html", "corrupt", "dead"])
def test_the_next_mirror_is_tried(kind, server, tmp_path):
    path = get(model(server, f"{kind}.pkl", "good.pkl"), tmp_path, attempts=1)
    assert path.read_bytes() == BODY


def test_another_size_is_refused_before_the_transfer(server, tmp_path):
    with pytest.raises(UserError, match="300000 bytes, not 5"):
        get(model(server, "good.pkl", size=5), tmp_path)
    assert left(tmp_path) == []


def test_no_server(server, tmp_path):
    nowhere = model(server, "x.pkl", urls=("http://127.0.0.1:9/x.pkl",))
    with pytest.raises(UserError, match="no connection"):
        get(nowhere, tmp_path)


def test_offline(server, tmp_path):
    wanted = model(server, "good.pkl")
    with pytest.raises(UserError, match=r"--offline.*another machine"):
        get(wanted, tmp_path, offline=True)
    (tmp_path / "test.pkl").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        get(wanted, tmp_path, offline=True)
    (tmp_path / "test.pkl").write_bytes(BODY)
    assert get(wanted, tmp_path, offline=True).read_bytes() == BODY
    assert server.seen == []


def test_a_damaged_file_is_replaced(server, tmp_path):
    (tmp_path / "test.pkl").write_bytes(b"damaged")
    assert get(model(server, "good.pkl"), tmp_path).read_bytes() == BODY


def test_a_full_disk_is_said_first(server, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="free some"):
        get(model(server, "good.pkl"), tmp_path)


def test_a_fetched_model_is_known_by_name(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    source = GOLDEN / "tf_legacy_generator_only_32.pkl"
    server.body = source.read_bytes()
    wanted = model(server, "good.pkl", name="tiny", size=None, sha256=None)
    monkeypatch.setattr(module, "models", lambda: {"tiny": wanted})
    assert main(["tiny"]) == 0
    assert "no published value to compare with" in capsys.readouterr().out
    assert load_generator("tiny").resolution == 32
    assert main(["tiny", "--offline"]) == 0
    assert len(server.seen) == 1
    assert main(["tiny", "--no-convert", "--out", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own" / "tiny.pkl").read_bytes() == server.body


def test_an_address_is_fetched_and_known_by_the_name_that_is_said(
    server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    server.body = (GOLDEN / "ada_pytorch_skip_32.pkl").read_bytes()
    address = f"{server.address}good.pkl?download=true"
    name = model_at(address).name
    assert name.startswith("good-") and model_at(server.address + "x/good.pkl").name != name
    assert main([address]) == 0
    said = capsys.readouterr()
    assert f"--generator {name}" in said.out
    assert "read from 'G_ema', the averaged" in said.err
    assert (tmp_path / "downloads" / f"{name}.pkl").is_file()
    assert load_generator(name).resolution == 32


def test_a_cache_that_cannot_be_written_names_its_setting(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write in .*STYLESR_CACHE"):
        get(model(server, "good.pkl"), tmp_path / "file" / "downloads")
    (tmp_path / "test.pkl.part").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*part.*STYLESR_CACHE"):
        get(model(server, "good.pkl"), tmp_path)


def test_command_line(capsys):
    assert main(["--list"]) == 0
    assert "ffhq-1024-config-f" in capsys.readouterr().out
    assert main(["no-such-model"]) == 2
    assert "ffhq-1024-config-f" in capsys.readouterr().err


def test_registry_entries_are_complete():
    known = models()
    assert len(known) >= 25
    assert len({url for m in known.values() for url in m.urls}) == sum(
        len(m.urls) for m in known.values()
    )
    for name, entry in known.items():
        assert entry.name == name
        assert entry.urls and all(url.startswith("https://") for url in entry.urls)
        assert entry.licence and entry.dataset
        assert entry.resolution & (entry.resolution - 1) == 0
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.size is None or entry.size > 1_000_000
        assert find(name) == entry


def test_a_known_file_keeps_its_title_and_licence(tmp_path, monkeypatch):
    source = GOLDEN / "tf_legacy_generator_only_32.pkl"
    entry = {"sha256": files.sha256(source), "name": "tiny", "title": "Tiny", "licence": "free"}
    registry = tmp_path / "registry.json"
    registry.write_text(module.json.dumps({"models": {"tiny": entry}}))
    monkeypatch.setattr(build.weights, "find_weights", lambda name: registry)
    build.convert_file(source, tmp_path / "out.safetensors")
    header = weights.read_header(tmp_path / "out.safetensors")
    assert (header["source"], header["licence"]) == ("Tiny", "free")
    assert header["config"]["name"] == "tiny"
