"""Every `mxc://` in a JSON value, whatever the value means."""

from __future__ import annotations

import re
from typing import Any

from archiver.model import MEDIA_ID_PATTERN, SERVER_NAME_PATTERN, Mxc, Reference, Role

SCHEME = "mxc://"

# Only the scheme is consumed: an mxc that starts where a broken one ends is found as well.
_MXC = re.compile(rf"mxc://(?=({SERVER_NAME_PATTERN})/({MEDIA_ID_PATTERN})(?![0-9A-Za-z_-]))")

_FILENAME_MAX = 1_024
_CAPTION_MAX = 4_096
_TYPE_MAX = 255
_SIZE_MAX = 2**63 - 1
_ITEM_MAX = 2**15 - 1

# PostgreSQL's text holds neither.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Found:
    """What one event names: filled by the typed roles first, then by the walk."""

    __slots__ = ("_named", "_settled", "malformed", "references")

    def __init__(self) -> None:
        self.references: list[Reference] = []
        self.malformed = 0
        self._named: dict[Mxc, list[Role]] = {}
        self._settled: set[str] = set()

    def add(
        self,
        url: Any,
        role: Role,
        item: int = 0,
        *,
        info: dict[str, Any] | None = None,
        filename: Any = None,
        caption: Any = None,
        encrypted: dict[str, Any] | None = None,
    ) -> None:
        """Keep `url` if it is a string that starts with a valid mxc.

        `info` is what declares `mimetype` and `size`; `encrypted` is the EncryptedFile that held
        the url. Fields of a wrong type are as good as absent.
        """
        match = _MXC.match(url) if isinstance(url, str) else None
        mxc = Mxc.checked(match[1], match[2]) if match else None
        if match is None or mxc is None:
            return
        if match.end(2) == len(url):
            self._settled.add(url)
        if not self._is_news(mxc, role):
            return
        info = info or {}
        self.references.append(
            Reference(
                mxc,
                role,
                min(item, _ITEM_MAX),
                _text(filename, _FILENAME_MAX),
                _text(caption, _CAPTION_MAX),
                _text(info.get("mimetype"), _TYPE_MAX),
                _size(info.get("size")),
                {k: v for k, v in encrypted.items() if k != "url"} or None if encrypted else None,
            )
        )

    def scan(self, text: str) -> None:
        """Keep every valid mxc inside `text`, which holds the scheme at least once."""
        if text in self._settled:
            return
        valid = False
        for match in _MXC.finditer(text):
            mxc = Mxc.checked(match[1], match[2])
            if mxc is None:
                continue
            valid = True
            if self._is_news(mxc, Role.OTHER):
                self.references.append(Reference(mxc, Role.OTHER))
        self.malformed += not valid

    def _is_news(self, mxc: Mxc, role: Role) -> bool:
        """Whether `role` adds to what is known of `mxc`; `OTHER` does only where nothing is."""
        roles = self._named.setdefault(mxc, [])
        if role in roles or (roles and role is Role.OTHER):
            return False
        roles.append(role)
        return True


def walk(found: Found, value: Any) -> None:
    """Scan every string and every key of a JSON value, breadth first and without recursion."""
    nodes: list[Any] = [[value]]
    for node in nodes:  # grows while it is read
        if isinstance(node, dict):
            if "hashes" in node:  # an EncryptedFile in a place that has no role yet
                found.add(node.get("url"), Role.OTHER, encrypted=node)
            for key in node:
                if SCHEME in key:
                    found.scan(key)
            members = node.values()
        else:
            members = node
        for member in members:
            if isinstance(member, str):
                if SCHEME in member:
                    found.scan(member)
            elif isinstance(member, dict | list):
                nodes.append(member)


def _text(value: Any, limit: int) -> str | None:
    if isinstance(value, str) and value:
        return _UNSTORABLE.sub("\ufffd", value[:limit])
    return None


def _size(value: Any) -> int | None:
    # type(), because a bool is an int to isinstance().
    return value if type(value) is int and 0 <= value <= _SIZE_MAX else None
