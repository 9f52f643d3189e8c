"""Whether the homeserver is there at all."""

from __future__ import annotations

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=10)


async def answers(session: aiohttp.ClientSession, homeserver_url: str) -> bool:
    """True when the homeserver answers, whatever it says; a proxy's 502 is no answer of it.

    https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientversions
    """
    url = f"{homeserver_url}/_matrix/client/versions"
    try:
        async with session.get(url, allow_redirects=False, timeout=_TIMEOUT) as response:
            return response.status < 500
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
