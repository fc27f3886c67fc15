"""Verification of OpenPGP signatures, with Debian's public keys that are part of this package."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pysequoia import Cert

KEYS = Path(__file__).parent / "keys"


class BadSignature(ValueError):
    """The text is not signed by any of the keys, or it was changed afterwards."""


class Keyring:
    """Public keys that are trusted to sign.

    folder: all `*.gpg` and `*.asc` files in it are taken; the package's own where not given.
    """

    def __init__(self, folder: Path = KEYS) -> None:
        self._certificates = _load(folder)

    def signed_text(self, message: bytes) -> bytes:
        """The text of an inline-signed message, and of it only what the signature covers.

        Raises BadSignature where no key of this ring has made a valid signature on it.
        """
        import pysequoia

        try:
            # Several keys sign Debian's releases; one that is known here is enough.
            verified = pysequoia.verify(message, store=lambda _: list(self._certificates))
        except Exception as error:  # noqa: BLE001  (RuntimeError or a type of its own, by kind)
            raise BadSignature(str(error).partition("\n")[0].strip()) from None
        if not verified.valid_sigs or verified.bytes is None:
            raise BadSignature("no valid signature was found")
        return verified.bytes


@functools.cache
def _load(folder: Path) -> tuple[Cert, ...]:
    from pysequoia import Cert

    files = sorted(path for path in folder.iterdir() if path.suffix in (".gpg", ".asc"))
    return tuple(cert for path in files for cert in Cert.split_bytes(path.read_bytes()))
