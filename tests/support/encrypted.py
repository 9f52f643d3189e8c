"""An encrypted attachment, as clients make and open it.

https://spec.matrix.org/v1.16/client-server-api/#sending-encrypted-attachments
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from Crypto.Cipher import AES


def encrypt(plaintext: bytes) -> tuple[bytes, dict[str, Any]]:
    """The ciphertext, and the EncryptedFile that lacks only its url."""
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(8)
    ciphertext = AES.new(key, AES.MODE_CTR, nonce=nonce).encrypt(plaintext)
    return ciphertext, {
        "v": "v2",
        "key": {
            "kty": "oct",
            "alg": "A256CTR",
            "ext": True,
            "key_ops": ["encrypt", "decrypt"],
            "k": urlsafe_b64encode(key).decode().rstrip("="),
        },
        "iv": _unpadded(nonce + bytes(8)),
        "hashes": {"sha256": _unpadded(hashlib.sha256(ciphertext).digest())},
    }


def decrypt(ciphertext: bytes, file: dict[str, Any]) -> bytes:
    """The plaintext again. Raises ValueError when the ciphertext is not the sender's."""
    if _unpadded(hashlib.sha256(ciphertext).digest()) != file["hashes"]["sha256"]:
        raise ValueError("the ciphertext is not what its sender encrypted")
    key = urlsafe_b64decode(file["key"]["k"] + "==")
    nonce = b64decode(file["iv"] + "==")[:8]
    return AES.new(key, AES.MODE_CTR, nonce=nonce).decrypt(ciphertext)


def _unpadded(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")
