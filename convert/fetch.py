"""Downloads a published StyleGAN2 generator and converts it, so that its name can be used.

    python -m convert.fetch --list
    python -m convert.fetch ffhq-1024-ada [--out DIR] [--offline] [--no-convert]

The file goes to DIR (default: the user's cache) and its conversion to the cache, after which
`--generator NAME` finds it. Broken downloads are continued, mirrors are tried in turn, and the
sha256 is checked where one is publicly known.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from convert.detect import refuse_text
from convert.stylegan2 import convert_file
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.runtime import files, weights

STALL_SECONDS = 30.0  # without MIN_PROGRESS bytes in this time a connection is given up
MIN_PROGRESS = 1 << 14
ATTEMPTS = 5  # per address, counted since the last progress
CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True)
class Model:
    """A published file: see weights/REGISTRY.md. `size` and `sha256` are None where unknown."""

    name: str
    title: str
    resolution: int
    classes: int
    dataset: str
    format: str
    licence: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    note: str = ""

    @property
    def file_name(self) -> str:
        return f"{self.name}{Path(self.urls[0]).suffix}"


class _Retry(Exception):
    """The transfer broke, and trying again may help."""


def models() -> dict[str, Model]:
    """The published models of the registry, by name."""
    registry = json.loads(weights.find_weights("registry.json").read_text())
    return {
        name: Model(**{**entry, "urls": tuple(entry["urls"])})
        for name, entry in registry["models"].items()
    }


def find(name: str) -> Model:
    """The published model of that name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    known = models()
    if name not in known:
        raise UserError(f"unknown model {name!r}; there are: {', '.join(known)}")
    return known[name]


# --- one transfer ---------------------------------------------------------------------------


def _open(url: str, start: int, tag: str | None, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "stylesr-jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        # Without it a server would append the end of a newer file to the start of an older one.
        if tag:
            headers["If-Range"] = tag
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                raise _Stale from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Retry(f"the server answered {error.code} {error.reason}") from error
            raise UserError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _Retry(f"no connection ({getattr(error, 'reason', error)})") from error


class _Stale(Exception):
    """The part on disk does not belong to what the server has."""


def _begin(response: HTTPResponse, start: int) -> tuple[int, int | None]:
    """(offset at which the response's bytes belong, total size where the server says it)."""
    length = response.headers.get("Content-Length")
    size = int(length) if length is not None and length.isdigit() else None
    if response.status == 206:
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        if span != f"bytes {start}-{int(total) - 1 if total.isdigit() else ''}":
            raise _Stale
        return start, int(total)
    return 0, size


def _transfer(
    url: str, part: Path, *, tag_file: Path, expected: int | None, timeout: float, bar: tqdm
) -> None:
    """Continue `part` from the address until the file is complete.

    Raises:
        _Retry: the connection broke; what arrived is kept.
        _Stale: the part does not belong to the server's file.
        UserError: the server has something else.
    """
    start = part.stat().st_size if part.exists() else 0
    tag = tag_file.read_text() if start and tag_file.exists() else None
    with _open(url, start, tag, timeout) as response:
        if response.headers.get_content_type() == "text/html":
            raise UserError("the server sent an HTML page instead of the file")
        offset, total = _begin(response, start)
        if expected is not None and total is not None and total != expected:
            raise UserError(f"the server's file has {total} bytes, not {expected}")
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - offset > free:
            raise UserError(
                f"{part.parent} has {free / 1e9:.1f} GB left, {(total - offset) / 1e9:.1f} GB "
                "are needed: free some, or choose another folder with --out"
            )
        tag_file.write_text(response.headers.get("ETag", ""))
        bar.reset(total or expected)
        bar.update(offset)
        with open(part, "r+b" if offset else "wb") as file:
            file.seek(offset)
            done = _receive(response, file, offset, timeout, bar)
    if total is not None and done < total:
        raise _Retry(f"the connection was cut off after {done} of {total} bytes")


def _receive(response: HTTPResponse, file, offset: int, timeout: float, bar: tqdm) -> int:
    """Write the response to the file; returns how far it reaches then."""
    done = offset
    mark, mark_time = done, time.monotonic()
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, HTTPException) as error:
            raise _Retry(f"the connection broke after {done} bytes ({error})") from error
        if not chunk:
            return done
        if done == 0:
            refuse_text(chunk[:4096])
        file.write(chunk)
        done += len(chunk)
        bar.update(len(chunk))
        now = time.monotonic()
        if done - mark >= MIN_PROGRESS:
            mark, mark_time = done, now
        elif now - mark_time > timeout:
            raise _Retry(f"the server stalled after {done} bytes")


# --- a whole download -----------------------------------------------------------------------


def _download_from(
    url: str, part: Path, model: Model, *, timeout: float, attempts: int, pause: float, bar: tqdm
) -> None:
    """Complete `part` from one address, over several connections if need be.

    Raises:
        UserError: the address does not give the file.
    """
    tag_file = part.with_suffix(".etag")
    failures, furthest = 0, part.stat().st_size if part.exists() else 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, tag_file=tag_file, expected=model.size, timeout=timeout, bar=bar)
            break
        except _Stale:
            if before and before == model.size:
                break
            reason = "the server cannot continue the download"
            part.unlink(missing_ok=True)
        except _Retry as error:
            reason = str(error)
        after = part.stat().st_size if part.exists() else 0
        # Only what goes beyond all before counts, or a dripping server would never be given up.
        progress = after - furthest >= MIN_PROGRESS
        furthest = max(furthest, after) if progress else furthest
        failures = 0 if progress else failures + 1
        if failures >= attempts:
            raise UserError(f"{reason}; gave up after {attempts} attempts without progress")
        time.sleep(pause * 2**failures)
    size = part.stat().st_size
    if model.size is not None and size != model.size:
        part.unlink()
        raise UserError(f"the file has {size} bytes, not {model.size}")
    if model.sha256 is not None and (digest := files.sha256(part)) != model.sha256:
        part.unlink()
        raise UserError(f"the file's sha256 is {digest}, not {model.sha256}; it was removed")
    tag_file.unlink(missing_ok=True)


def _present(path: Path, model: Model) -> bool:
    """Whether the complete file is there; a wrong one is set aside by the next download."""
    if not path.is_file():
        return False
    return model.sha256 is None or files.sha256(path) == model.sha256


def download(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    offline: bool = False,
    timeout: float = STALL_SECONDS,
    attempts: int = ATTEMPTS,
    pause: float = 1.0,
    quiet: bool = False,
) -> Path:
    """Download a model's file unless it is there already.

    Args:
        model: from the registry.
        folder: where the file goes; a broken download continues from what it left there.
        offline: do not use the network.
        timeout: seconds after which a stalled connection is given up.
        attempts: connections without progress before the next address is tried.
        pause: seconds before the second attempt, doubled for each further one.
        quiet: no progress bar.

    Returns:
        The file's path; its sha256 is the published one where that is known.

    Raises:
        UserError: offline and not there, or no address gives the file.
    """
    folder = Path(folder)
    path = folder / model.file_name
    if _present(path, model):
        return path
    if offline:
        raise UserError(
            f"{model.name} is not at {path} (or is damaged), and --offline is set: run without "
            f"it, or get {model.urls[0]} on another machine and put it there"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from error
    part = path.with_suffix(path.suffix + ".part")
    failures = []
    with tqdm(unit="B", unit_scale=True, desc=model.name, disable=True if quiet else None) as bar:
        for url in model.urls:
            try:
                _download_from(
                    url, part, model, timeout=timeout, attempts=attempts, pause=pause, bar=bar
                )
            except UserError as error:
                failures.append(f"{url}: {error}")
                if model.sha256 is None:
                    part.unlink(missing_ok=True)  # nothing would tell a mixture of two mirrors
            except OSError as error:
                raise UserError(f"cannot write {part}: {error.strerror or error}") from error
            else:
                os.replace(part, path)
                return path
    raise UserError(
        f"could not download {model.name}: {'; '.join(failures)}. Run the command again to "
        f"continue, or download it by hand to {path}"
    )


def fetch(
    model: Model, *, out: Path | None = None, offline: bool = False, convert: bool = True
) -> tuple[Path, Path | None]:
    """Download a model and convert it into the user's cache: (file, conversion).

    Raises:
        UserError: see `download` and `convert.stylegan2.convert_file`.
    """
    folder = files.cache_dir() / "downloads" if out is None else out
    path = download(model, folder, offline=offline)
    if not convert:
        return path, None
    converted = files.cache_dir() / "generators" / f"{model.name}.safetensors"
    fresh = converted.is_file() and weights.read_header(converted).get(
        "source_sha256"
    ) == files.sha256(path)
    if not fresh:
        convert_file(path, converted)
    return path, converted


def _list(known: dict[str, Model]) -> str:
    lines = []
    for model in known.values():
        size = f"{model.size / 1e6:.0f} MB" if model.size else "size unknown"
        check = "sha256 known" if model.sha256 else "sha256 unknown"
        lines.append(f"{model.name:22} {model.resolution:5} px  {model.title}  [{size}, {check}]")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.fetch", description="Download a published StyleGAN2 generator."
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("name", nargs="?", metavar="NAME", help="a name that --list shows")
    choice.add_argument("--list", action="store_true", help="list the published models")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the downloaded file")
    parser.add_argument("--offline", action="store_true", help="do not use the network")
    parser.add_argument("--no-convert", action="store_true", help="download only")
    args = parser.parse_args(argv)
    if args.list:
        print(_list(models()))
        return 0
    return exit_code(lambda: _fetch(args))


def _fetch(args: argparse.Namespace) -> None:
    model = find(args.name)
    print(f"{model.title}; licence: {model.licence}; trained on {model.dataset}")
    path, converted = fetch(model, out=args.out, offline=args.offline, convert=not args.no_convert)
    digest = files.sha256(path)
    verdict = "as published" if model.sha256 else "no published value to compare with"
    print(f"{path}: sha256 {digest} ({verdict})")
    if converted is not None:
        print(f"{converted}: use it with --generator {model.name}")


if __name__ == "__main__":
    sys.exit(main())
