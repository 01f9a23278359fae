"""The keys of clients: a file with their names, their scopes, and the hashes of the keys.

`scripts/keys.py` writes the file. Every replica of the ingress reads it again as soon as it has
changed, so new keys and revoked ones count at once, without a restart.

A key is 32 random bytes, so nobody finds one by trying, and a plain hash keeps it: slow hashes are
for what people think up.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.errors import StartupError, Unavailable
from deployments.files import replacing

logger = logging.getLogger(__name__)

Scope = Literal["search", "read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PREFIX = "inset_"
KEY_BYTES = 32
MAX_KEY = 200  # characters that are looked at
LOOK_S = 0.5  # how long what was read of the file counts before the file is looked at again


class Key(BaseModel):
    """What the file says about a key, which isn't the key itself.

    Attributes:
        name: for people.
        scopes: what it allows. `admin` allows everything.
        sha256: of the key, hexadecimal.
        created: UTC, ISO 8601.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: str

    def allows(self, scope: Scope) -> bool:
        """Return whether the key has a scope."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def allowed(self) -> list[Scope]:
        """All scopes that the key has, or that `admin` brings."""
        return [scope for scope in SCOPES if self.allows(scope)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key]


class UnusableKeys(Exception):
    """The file of keys can't be read or changed; the message says why and what to do."""


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file; none if there is no file.

    Raises:
        UnusableKeys: it can't be read, or is no file of keys.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnusableKeys(f"The keys in {path} can't be read ({error.strerror}).") from None
    except ValidationError as error:
        raise UnusableKeys(
            f"{path} is no file of keys ({_first(error)}): restore it, or delete it and make "
            "new keys with scripts/keys.py."
        ) from None


def make_key(path: Path, name: str, scopes: tuple[Scope, ...]) -> str:
    """Add a key to a file, and return it. It stands nowhere else.

    Raises:
        UnusableKeys: the name is taken, or the file can't be read or written.
        ValueError: the name or the scopes are none.
    """
    secret = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    key = Key(name=name, scopes=scopes, sha256=_hash(secret), created=created)
    with _changing(path) as keys:
        if any(known.name == name for known in keys):
            raise UnusableKeys(
                f"There is a key named {name} already: revoke it, or take another name."
            )
        keys.append(key)
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file. The file stays, so the last one leaves the door locked.

    Raises:
        UnusableKeys: there is no such key, or the file can't be read or written.
    """
    with _changing(path) as keys:
        names = [key.name for key in keys]
        if name not in names:
            known = ", ".join(names) or "none"
            raise UnusableKeys(f"There is no key named {name} (there are: {known}).")
        keys[:] = [key for key in keys if key.name != name]


@contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """Lend the keys of a file, to be changed, and write them. Nobody else changes them then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            keys = read_keys(path)
            yield keys
            with replacing(path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(_File(keys=keys).model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise UnusableKeys(f"{path} can't be written ({error.strerror}).") from None


def _first(error: ValidationError) -> str:
    """Return what is wrong first, without the values, which are none of a log's business."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys that a service knows now.

    Args:
        path: the file; None for none.

    Raises:
        StartupError: there is a file, but it can't be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._looked = -LOOK_S
        self._version: tuple[int, int, int] | None = None  # of the file; None if there is none
        self._are_needed = False
        self._keys: list[Key] = []
        self._trouble: str | None = None
        self._look()
        if self._trouble is not None:
            raise StartupError(self._trouble)

    @property
    def are_needed(self) -> bool:
        """Whether a client needs a key: there is a file, even if no key is left in it.

        A file that is deleted opens nothing: then no key is known until the next start.

        Raises:
            Unavailable: the file can't be read now. Then nobody comes in.
        """
        self._look()
        if self._trouble is not None:
            raise Unavailable(f"{self._trouble} Until then no key is known.")
        return self._are_needed

    def find(self, secret: str) -> Key | None:
        """Return what is known about a key; None if it is not known.

        It takes as long for any key of the same length, whichever it is like.

        Raises:
            Unavailable: see `are_needed`.
        """
        if not self.are_needed or len(secret) > MAX_KEY:
            return None
        digest = _hash(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _look(self) -> None:
        """Read the file again if it has changed."""
        if self.path is None or time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            status = self.path.stat()
            version = status.st_ino, status.st_mtime_ns, status.st_size
        except FileNotFoundError:
            version = None
        except OSError as error:
            self._keep(f"The keys in {self.path} can't be read ({error.strerror}).")
            return
        if version == self._version and self._trouble is None:
            return
        self._are_needed = self._are_needed or version is not None  # even if it can't be read
        try:
            self._keys = read_keys(self.path)
        except UnusableKeys as error:
            self._keep(str(error))
        else:
            self._version, self._trouble = version, None

    def _keep(self, trouble: str) -> None:
        if trouble != self._trouble:
            logger.error("%s", trouble)
        self._trouble = trouble
