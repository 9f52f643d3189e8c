"""Large media straight from the bucket: its bytes do not pass through us at all.

The bucket cannot send all headers that we do, above all no sandbox. So what no page may show is
a download there, too, of a type that nothing renders as a page of anybody's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from archiver.model import Blob
from archiver.serve.headers import CORS
from archiver.store.hybrid import HybridStore

if TYPE_CHECKING:
    from multidict import CIMultiDict

# A browser comes back to us for each request of its own, a player for each part.
LINK_SECONDS = 300
HIDDEN_SECONDS = 30  # time to follow it; whoever got it may pass it on so long
# Of ours; what else there is describes bytes.
KEPT = (
    *CORS,
    "Cross-Origin-Resource-Policy",
    "Referrer-Policy",
    "X-Cache",
    "X-Content-Type-Options",
    "X-Robots-Tag",
)


async def redirected(
    store: HybridStore, blob: Blob, headers: CIMultiDict[str], hidden: bool
) -> web.Response | None:
    """The way to a blob in a bucket, for who may see it now; None where it rests elsewhere.

    `headers` are those of the answer that it stands for. A Range the client repeats there, as
    RFC 9110 section 15.4 has it. Raises StoreUnavailable.
    """
    link = await store.link(
        blob,
        HIDDEN_SECONDS if hidden else LINK_SECONDS,
        headers["Content-Type"],
        headers["Content-Disposition"],
        headers["Cache-Control"],
    )
    if link is None:
        return None
    said = {name: headers[name] for name in KEPT}
    return web.Response(
        status=307, headers={**said, "Location": link, "Cache-Control": "private, no-store"}
    )
