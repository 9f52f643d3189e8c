"""Who may read, how much at a time, and for how long it is known who did."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from archiver.serve.limits import Limits
from archiver.serve.matrix_tokens import MatrixTokens

if TYPE_CHECKING:
    import aiohttp

    from archiver.config import Homeserver, Serve


@dataclass(frozen=True)
class Access:
    """The rules of the readers' door. Without `matrix`, no Matrix token is good."""

    matrix: MatrixTokens | None = None
    limits: Limits = field(default_factory=Limits)
    public_url: str = "http://localhost:29341"
    signed_for_at_most: timedelta = timedelta(days=7)
    keep_reads: timedelta | None = timedelta(days=90)
    redirects: bool = False


def configured(session: aiohttp.ClientSession, homeserver: Homeserver, serve: Serve) -> Access:
    """The rules as the configuration has them."""
    matrix = None
    if serve.matrix_tokens != "nobody":
        local_users = serve.matrix_tokens == "local_users"
        where = homeserver.url, homeserver.server_name
        matrix = MatrixTokens(session, *where, local_users=local_users)
    return Access(
        matrix,
        Limits(serve.rate_limit, serve.rate_burst, serve.failure_limit, serve.trusted_proxies),
        serve.public_url,
        serve.signed_for_at_most,
        serve.keep_reads,
        serve.redirect_objects,
    )
