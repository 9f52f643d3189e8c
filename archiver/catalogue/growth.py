"""How much the archive keeps, how it grew, and what that comes to if it goes on.

Of the files that media have; thumbnails of them are not among these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

MONTHS = 12
LOOKED_BACK = 90  # days, for the forecast
AHEAD = (30, 90)

# By state, and of what is ready by the month in which it was archived, as far as it is recent.
# What nobody may see is not told of as the largest.
MEDIA = """
SELECT m.state, CASE WHEN m.state = 'ready' AND m.settled_at >= $1
                     THEN to_char(m.settled_at AT TIME ZONE 'UTC', 'YYYY-MM') END AS month,
       count(*) AS media, sum(m.access_count)::bigint AS accesses,
       coalesce(sum(b.size), 0)::bigint AS bytes,
       max(b.size) FILTER (WHERE m.state = 'ready' AND m.redacted_at IS NULL) AS largest
FROM media AS m LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256 GROUP BY 1, 2 ORDER BY 1, 2
"""
# By the month in which bytes were first stored, as far as it is recent.
FILES = """
SELECT CASE WHEN b.created_at >= $1
            THEN to_char(b.created_at AT TIME ZONE 'UTC', 'YYYY-MM') END AS month,
       count(*) AS files, sum(b.size)::bigint AS bytes,
       coalesce(sum(b.size) FILTER (WHERE b.created_at >= $2), 0)::bigint AS recent,
       coalesce(sum(b.size) FILTER (WHERE b.created_at >= $2 AND b.place = 'object'), 0)::bigint
           AS recent_objects,
       min(b.created_at) AS oldest
FROM blob AS b WHERE EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256) GROUP BY 1
"""
LARGEST = """
SELECT m.server_name, m.media_id FROM blob AS b JOIN media AS m ON m.blob_sha256 = b.sha256
WHERE b.size = $1 AND m.state = 'ready' AND m.redacted_at IS NULL
ORDER BY m.server_name, m.media_id LIMIT 1
"""


async def figures(conn: Connection) -> dict[str, Any]:
    """Media by state, totals, growth by month (UTC, the oldest first) and a forecast.

    Reads the tables of media and blobs.
    """
    now = datetime.now(UTC)
    months = _months(now)
    first = datetime.strptime(months[0], "%Y-%m").replace(tzinfo=UTC)
    media = await conn.fetch(MEDIA, first)
    files = await conn.fetch(FILES, first, now - timedelta(days=LOOKED_BACK))
    states: dict[str, int] = defaultdict(int)
    for row in media:
        states[row["state"]] += row["media"]
    return {
        "media": dict(states),
        "totals": await _totals(conn, media, files),
        "growth": _growth(months, media, files),
        "forecast": _forecast(now, files),
    }


async def _totals(conn: Connection, media: list[Row], files: list[Row]) -> dict[str, Any]:
    number, size = sum(row["files"] for row in files), sum(row["bytes"] for row in files)
    largest = max((row["largest"] for row in media if row["largest"] is not None), default=None)
    named = await conn.fetchrow(LARGEST, largest) if largest is not None else None
    return {
        "files": number,
        "bytes": size,
        "deduplicated_bytes": sum(row["bytes"] for row in media) - size,
        "average_bytes": round(size / number) if number else 0,
        "largest": named and {"mxc": f"mxc://{named[0]}/{named[1]}", "bytes": largest},
        "accesses": sum(row["accesses"] for row in media),
    }


def _growth(
    months: list[str], media: Iterable[Row], files: Iterable[Row]
) -> list[dict[str, int | str]]:
    archived = {row["month"]: row["media"] for row in media if row["month"]}
    stored = {row["month"]: row["bytes"] for row in files if row["month"]}
    return [
        {"month": month, "media": archived.get(month, 0), "bytes": stored.get(month, 0)}
        for month in months
    ]


def _forecast(now: datetime, files: list[Row]) -> dict[str, int]:
    """By the average of the last days, or of as many as the archive has."""
    oldest = min((row["oldest"] for row in files), default=now)
    days = max(1, min((now - oldest).days, LOOKED_BACK))
    recent = sum(row["recent"] for row in files)
    size = sum(row["bytes"] for row in files)
    return {
        "bytes_per_day": recent // days,
        "object_bytes_per_day": sum(row["recent_objects"] for row in files) // days,
        **{f"bytes_in_{ahead}_days": size + recent * ahead // days for ahead in AHEAD},
    }


def _months(now: datetime) -> list[str]:
    """This month and the eleven before it, like `2026-05`."""
    number = now.year * 12 + now.month - 1
    return [f"{n // 12:04}-{n % 12 + 1:02}" for n in range(number - MONTHS + 1, number + 1)]
