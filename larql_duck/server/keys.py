"""Keys of clients: read from a file or the environment, compared in constant time, never shown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from larql_duck.errors import LarqlError, PathError

PROFILES = ("reader", "editor")
"""What a key may hold. The owner is who started the server, and has no key: files are for the local user alone."""

VARIABLE = "LARQL_DUCK_API_KEY"
_LEAST = 16


@dataclass(frozen=True)
class Client:
    """Who asks: a name for the log, the profile, and what tells its sessions from those of others."""

    name: str
    profile: str
    owner: str


LOCAL_READER = Client("local", "reader", "")
"""Who asks a server without keys."""


@dataclass(frozen=True)
class Keys:
    """The keys that a server takes, as digests."""

    entries: Sequence[tuple[bytes, Client]] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def has_editor(self) -> bool:
        """Whether a key may edit."""
        return any(client.profile == "editor" for _, client in self.entries)

    def client(self, key: str) -> Client | None:
        """Who holds the key; None for nobody. Takes as long for a wrong key as for a right one."""
        digest, found = _digest(key), None
        for known, client in self.entries:
            if hmac.compare_digest(known, digest):
                found = client
        return found


def keys_of(text: str, profile: str, name: str = "key") -> Keys:
    """One key. LarqlError for one that is easily guessed."""
    return Keys([_entry(text, profile, name, VARIABLE)])


def read_keys(path: Path) -> Keys:
    """The keys of a file: a line each, the key and its profile (reader or editor), # before remarks.

    PathError for a line of another form; no message holds a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PathError.at(path, f"cannot be read ({error}); it holds a key and its profile a line") from None
    entries = []
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        place = f"{path}:{number}"
        if len(words) != 2 or words[1] not in PROFILES:
            raise PathError(f"{place}: expected a key and its profile, reader or editor", path=path)
        entries.append(_entry(words[0], words[1], f"key {number}", place))
    if not entries:
        raise PathError.at(path, "holds no key; write one a line, as in: KEY reader")
    if len({digest for digest, _ in entries}) < len(entries):
        raise PathError.at(path, "holds a key twice; give each client its own")
    return Keys(entries)


def _entry(key: str, profile: str, name: str, place: str) -> tuple[bytes, Client]:
    if len(key) < _LEAST or not (key.isascii() and key.isprintable()) or " " in key:
        raise LarqlError(
            f"{place}: a key has at least {_LEAST} printable characters and no blank; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    digest = _digest(key)
    return digest, Client(name, profile, digest.hex())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
