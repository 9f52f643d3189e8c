"""Signed URLs: who has one may read one media until it expires, without a token.

    signature = base64url(HMAC-SHA-256(secret, path \\n expires \\n scope \\n parameters))

without padding. `path` is the URL's path, percent-decoded; `expires` is in seconds since 1970;
`scope` is read or admin; `parameters` are all others of the query but key and signature, as
name=value, percent-decoded, sorted, and joined by &. They are appended to the URL with
`expires`, `scope`, `key` and `signature`.

Nothing in it can be read in two ways: no part may hold a line break, no name a =, no value a &.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, urlencode

from multidict import MultiMapping

from archiver.errors import Forbidden
from archiver.model import Scope

EXPIRES, SCOPE, KEY, SIGNATURE = "expires", "scope", "key", "signature"
OURS = frozenset({EXPIRES, SCOPE, KEY, SIGNATURE})

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_VALUE = re.compile(r"[!-%'-~]*")  # visible ASCII but &

Parameter = tuple[str, str]


class Signed(NamedTuple):
    """What a signed URL says of itself."""

    path: str
    expires: int
    scope: Scope
    key_id: int
    signature: str
    parameters: tuple[Parameter, ...] = ()

    def is_by(self, secret: str) -> bool:
        """True for the signature that this secret makes; in constant time."""
        right = sign(secret, self.path, self.expires, self.scope, self.parameters)
        return hmac.compare_digest(right.encode(), self.signature.encode())


def invalid() -> Forbidden:
    """One sentence for whatever is wrong, so that nobody learns which part of it is right."""
    return Forbidden(
        "the signature of this URL is not valid: the URL was changed, or its key is unknown, "
        "expired, revoked or not allowed to sign for this"
    )


def sign(
    secret: str, path: str, expires: int, scope: str, parameters: Iterable[Parameter] = ()
) -> str:
    """The signature. Nothing is checked here: see `is_signable` and `are_signable`."""
    others = "&".join(sorted(f"{name}={value}" for name, value in parameters))
    message = "\n".join((path, str(expires), scope, others))
    digest = hmac.digest(secret.encode(), message.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def signed_url(
    secret: str, key_id: int, path: str, expires: int, scope: Scope, parameters: list[Parameter]
) -> str:
    """Path and query of a URL that is good until `expires`."""
    ours = [(EXPIRES, str(expires)), (SCOPE, str(scope)), (KEY, str(key_id))]
    signature = sign(secret, path, expires, scope, parameters)
    query = urlencode([*parameters, *ours, (SIGNATURE, signature)])
    return f"{quote(path, safe='/:@')}?{query}"


def are_signable(parameters: Iterable[Parameter]) -> bool:
    """True when each has a plain name, which is none of ours, and a value in visible ASCII."""
    return all(
        _NAME.fullmatch(name) and name not in OURS and _VALUE.fullmatch(value)
        for name, value in parameters
    )


def read(path: str, query: MultiMapping[str]) -> Signed:
    """What a request with a `signature` says; not checked yet. Raises Forbidden."""
    ours = {name: query.getall(name, []) for name in OURS}
    others = tuple((name, value) for name, value in query.items() if name not in OURS)
    if any(len(values) != 1 for values in ours.values()) or not are_signable(others):
        raise invalid()
    expires, scope, key_id, signature = (ours[n][0] for n in (EXPIRES, SCOPE, KEY, SIGNATURE))
    numbers = all(_NUMBER.fullmatch(number) for number in (expires, key_id))
    if not (numbers and scope in set(Scope) and signature.isascii() and _is_line(path)):
        raise invalid()
    return Signed(path, int(expires), Scope(scope), int(key_id), signature, others)


def _is_line(path: str) -> bool:
    """False for a path with a control character, or with half of one beyond ASCII."""
    plain = path.encode("utf-8", "replace").decode() == path
    return plain and not any(ord(character) < 32 for character in path)
