"""The bytes of which custody's hashes are: the same for the same row, now and for ever."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any


def canonical(told: dict[str, Any]) -> bytes:
    """A JSON object in UTF-8, without spaces and its keys sorted."""
    return json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def utc(at: datetime) -> str:
    """As `2026-05-31T12:00:00.000000+00:00`."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")
