"""Downloads a file: broken transfers are continued, mirrors tried in turn, the sha256 checked."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from convert.raw import refuse_text
from stylesr_jax.errors import UserError
from stylesr_jax.runtime import files, weights

STALL_SECONDS = 30.0  # without MIN_PROGRESS bytes in this time a connection is given up
MIN_PROGRESS = 1 << 14
ATTEMPTS = 5  # per address, counted since the last progress
CHUNK = 1 << 18
_ELSEWHERE = "choose another folder with --out or STYLESR_CACHE"


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
    suffix: str | None = None

    @property
    def file_name(self) -> str:
        suffix = Path(self.urls[0]).suffix if self.suffix is None else self.suffix
        return f"{self.name}{suffix}"


class _Retry(Exception):
    """The transfer broke, and trying again may help."""


def models() -> dict[str, Model]:
    """The published models of the registry, by name."""
    registry = json.loads(weights.find_weights("registry.json").read_text())
    return {
        name: Model(**{**entry, "urls": tuple(entry["urls"])})
        for name, entry in registry["models"].items()
    }


def model_at(url: str) -> Model:
    """The file at an address; its name is the address's last part and eight digits of a hash."""
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    return Model(
        name=f"{path.stem or 'download'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}",
        title=url,
        resolution=0,
        classes=0,
        dataset="unknown data",
        format="unknown",
        licence="unknown: ask whoever published the file",
        urls=(url,),
        suffix=path.suffix,
    )


def find(name: str) -> Model:
    """The published model of that name, or the file at that address.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name.startswith(("http://", "https://")):
        return model_at(name)
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
                "are needed: free some, or choose another folder with --out or STYLESR_CACHE"
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
        raise UserError(
            f"cannot write in {folder}: {error.strerror or error}; {_ELSEWHERE}"
        ) from error
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
                raise UserError(
                    f"cannot write {part}: {error.strerror or error}; {_ELSEWHERE}"
                ) from error
            else:
                os.replace(part, path)
                return path
    raise UserError(
        f"could not download {model.name}: {'; '.join(failures)}. Run the command again to "
        f"continue, or download it by hand to {path}"
    )
