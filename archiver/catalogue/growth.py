"""How much the archive keeps, how it grew, and what that comes to if it goes on.

Of the files that media have; thumbnails of them are not among these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from archiver.catalogue.counting import PATIENCE

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

MONTHS = 12
LOOKED_BACK = 90  # days, for the forecast
AHEAD = (30, 90)

# By state, and of what is ready by the month in which it was archived. What nobody may see is not
# told of as the largest.
MEDIA = """
SELECT m.state,
       CASE WHEN m.state = 'ready' THEN width_bucket(m.settled_at, $1::timestamptz[]) END AS month,
       count(*) AS media, sum(m.access_count)::bigint AS accesses,
       coalesce(sum(b.size), 0)::bigint AS bytes,
       max(b.size) FILTER (WHERE m.state = 'ready' AND m.redacted_at IS NULL) AS largest
FROM media AS m LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256 GROUP BY 1, 2 ORDER BY 1, 2
"""
# By the month in which bytes were first stored.
FILES = """
SELECT width_bucket(b.created_at, $1::timestamptz[]) AS month,
       count(*) AS files, sum(b.size)::bigint AS bytes,
       coalesce(sum(b.size) FILTER (WHERE b.created_at >= $2), 0)::bigint AS recent,
       coalesce(sum(b.size) FILTER (WHERE b.created_at >= $2 AND b.place = 'object'), 0)::bigint
           AS recent_objects,
       min(b.created_at) AS oldest
FROM blob AS b WHERE EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256) GROUP BY 1
"""
# By the size alone first: by the order of the names it could come last of all.
LARGEST = """
WITH largest AS MATERIALIZED (SELECT sha256 FROM blob WHERE size = $1)
SELECT m.server_name, m.media_id FROM largest AS b JOIN media AS m ON m.blob_sha256 = b.sha256
WHERE m.state = 'ready' AND m.redacted_at IS NULL
ORDER BY m.server_name, m.media_id LIMIT 1
"""


async def figures(conn: Connection) -> dict[str, Any]:
    """Media by state, totals, growth by month (UTC, the oldest first) and a forecast.

    Reads the tables of media and blobs.
    """
    now = datetime.now(UTC)
    months = _months(now)
    begins = [datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC) for month in months]
    media = await conn.fetch(MEDIA, begins, timeout=PATIENCE)
    looked_back = now - timedelta(days=LOOKED_BACK)
    files = await conn.fetch(FILES, begins, looked_back, timeout=PATIENCE)
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
    named = None
    if largest is not None:
        named = await conn.fetchrow(LARGEST, largest, timeout=PATIENCE)
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
    """The first month is number 1; what was before is in none of them."""
    archived = {row["month"]: row["media"] for row in media}
    stored = {row["month"]: row["bytes"] for row in files}
    return [
        {"month": month, "media": archived.get(number, 0), "bytes": stored.get(number, 0)}
        for number, month in enumerate(months, 1)
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
