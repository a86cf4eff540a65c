r"""The file of a backup: a header, then chunks that are encrypted, or digested where no passphrase is given.

::

    MAS-BACKUP\n
    {"v":1,"cipher":…,"salt":…,"nonce":…,"check":…}\n
    flag (1 byte: 1 for the last chunk)  length (4 bytes)  chunk      and so on

The key is scrypt's of the passphrase, each chunk AES-256-GCM with the header as associated data and a nonce
of prefix, counter and flag (the STREAM construction: Hoang, Reyhanitabar, Rogaway, Vizár, 2015). So chunks
can be neither altered, nor moved, nor cut off. Without a passphrase each chunk ends with a SHA-256 over the
same: damage is found, an attacker who computes it anew is not.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import BinaryIO, Protocol

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from broker_policy.backup.errors import BackupDamaged, WrongPassphrase

CHUNK = 1 << 20
_MAGIC = b"MAS-BACKUP\n"
_ENCRYPTED, _DIGESTED = "aes-256-gcm", "sha-256"
_SCRYPT_N = 1 << 17  # with r=8: 128 MB and some tenths of a second for each guess (OWASP, 2024)
_HEADER_MOST = 4096
_OVERHEAD = 64


class _Seal(Protocol):
    """Protects chunks."""

    def seal(self, number: int, last: bool, chunk: bytes) -> bytes: ...  # noqa: FBT001

    def open(self, number: int, last: bool, sealed: bytes) -> bytes: ...  # noqa: FBT001


class SealedWriter:
    """A binary file to write a backup's content to; ``close`` makes it complete."""

    def __init__(self, file: BinaryIO, passphrase: str | None) -> None:
        self._file = file
        self._buffer = bytearray()
        self._number = 0
        header: dict[str, object] = {"v": 1, "cipher": _ENCRYPTED if passphrase else _DIGESTED}
        nonce = os.urandom(7)
        header["nonce"] = base64.b64encode(nonce).decode()
        key = b""
        if passphrase:
            salt = os.urandom(16)
            key = _key(passphrase, salt)
            header["salt"] = base64.b64encode(salt).decode()
            header["check"] = _check(key)
        line = orjson.dumps(header) + b"\n"
        self._seal: _Seal = _Gcm(key, nonce, line) if passphrase else _Digest(nonce, line)
        file.write(_MAGIC + line)

    def write(self, data: bytes) -> int:
        """Add ``data``."""
        self._buffer += data
        while len(self._buffer) > CHUNK:  # not >=: the last chunk is written by close, and never empty
            self._put(bytes(self._buffer[:CHUNK]), last=False)
            del self._buffer[:CHUNK]
        return len(data)

    def close(self) -> None:
        """Write the last chunk. The file beneath stays open."""
        self._put(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _put(self, chunk: bytes, *, last: bool) -> None:
        sealed = self._seal.seal(self._number, last, chunk)
        self._file.write(bytes([last]) + len(sealed).to_bytes(4, "big") + sealed)
        self._number += 1


class SealedReader:
    """Reads what ``SealedWriter`` wrote, and nothing that was changed since.

    Raises:
        BackupDamaged: the file is no backup, altered or truncated.
        WrongPassphrase: it needs a passphrase, or another one.

    """

    def __init__(self, file: BinaryIO, passphrase: str | None) -> None:
        self._file = file
        self._number = 0
        self._ended = False
        self._buffer = b""
        if file.read(len(_MAGIC)) != _MAGIC:
            raise BackupDamaged("this file is no backup: it does not begin like one")
        line = file.readline(_HEADER_MOST)
        try:
            header = orjson.loads(line)
            version, cipher = header["v"], header["cipher"]
            nonce = base64.b64decode(header["nonce"], validate=True)
            salt = base64.b64decode(header.get("salt", ""), validate=True)
            check = str(header.get("check", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BackupDamaged("the backup's header is damaged") from None
        if version != 1 or cipher not in (_ENCRYPTED, _DIGESTED):
            raise BackupDamaged(f"the backup is of version {version}, cipher {cipher}: use a newer mas")
        self.encrypted = cipher == _ENCRYPTED
        if not self.encrypted:
            self._seal: _Seal = _Digest(nonce, line)
            return
        if not passphrase:
            raise WrongPassphrase(
                "the backup is encrypted: give its passphrase with --passphrase-file or MAS_BACKUP_PASSPHRASE"
            )
        key = _key(passphrase, salt)
        if not hmac.compare_digest(_check(key).encode(), check.encode()):
            raise WrongPassphrase("this is not the passphrase of the backup, or its header is damaged")
        self._seal = _Gcm(key, nonce, line)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer at the end of a chunk; nothing at the end. All of it when negative."""
        if size < 0:
            parts = [self._buffer]
            while more := self._next():
                parts.append(more)
            self._buffer = b""
            return b"".join(parts)
        if not self._buffer:
            self._buffer = self._next()
        out, self._buffer = self._buffer[:size], self._buffer[size:]
        return out

    def _next(self) -> bytes:
        if self._ended:
            return b""
        head = self._file.read(5)
        length = int.from_bytes(head[1:], "big")
        if len(head) < 5 or head[0] > 1 or length > CHUNK + _OVERHEAD:
            raise BackupDamaged(f"the backup is truncated or damaged at chunk {self._number}")
        sealed = self._file.read(length)
        if len(sealed) < length:
            raise BackupDamaged(f"the backup is truncated at chunk {self._number}")
        self._ended = bool(head[0])
        try:
            chunk = self._seal.open(self._number, self._ended, sealed)
        except (InvalidTag, ValueError):
            raise BackupDamaged(f"the backup is truncated or altered at chunk {self._number}") from None
        if self._ended and self._file.read(1):
            raise BackupDamaged("something was appended to the backup")
        self._number += 1
        return chunk


class _Gcm:
    def __init__(self, key: bytes, nonce: bytes, header: bytes) -> None:
        self._cipher, self._nonce, self._header = AESGCM(key), nonce, header

    def seal(self, number: int, last: bool, chunk: bytes) -> bytes:  # noqa: FBT001
        return self._cipher.encrypt(_nonce(self._nonce, number, last), chunk, self._header)

    def open(self, number: int, last: bool, sealed: bytes) -> bytes:  # noqa: FBT001
        return self._cipher.decrypt(_nonce(self._nonce, number, last), sealed, self._header)


class _Digest:
    def __init__(self, nonce: bytes, header: bytes) -> None:
        self._nonce, self._header = nonce, header

    def seal(self, number: int, last: bool, chunk: bytes) -> bytes:  # noqa: FBT001
        return chunk + self._digest(number, last, chunk)

    def open(self, number: int, last: bool, sealed: bytes) -> bytes:  # noqa: FBT001
        chunk, digest = sealed[:-32], sealed[-32:]
        if digest != self._digest(number, last, chunk):
            raise ValueError("digest")
        return chunk

    def _digest(self, number: int, last: bool, chunk: bytes) -> bytes:  # noqa: FBT001
        return hashlib.sha256(self._header + _nonce(self._nonce, number, last) + chunk).digest()


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:  # noqa: FBT001
    return prefix + number.to_bytes(4, "big") + bytes([last])


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(passphrase.encode())


def _check(key: bytes) -> str:
    return hmac.new(key, b"mas backup key check", hashlib.sha256).hexdigest()[:16]
