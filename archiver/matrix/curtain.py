"""The homeserver's own quarantine of media, by Synapse's admin API."""

from __future__ import annotations

import aiohttp
from yarl import URL

from archiver.errors import FetchFailed, HomeserverUnavailable, Permanent, Retryable
from archiver.matrix.refusal import Refusal, read_refusal
from archiver.model import Mxc

NOT_ADMIN = (
    "the bot is no administrator of the homeserver, so it cannot hide media there: an "
    'administrator may PUT /_synapse/admin/v1/users/{bot}/admin {{"admin": true}}'
)
NO_API = "this homeserver has no admin API by which it could hide media, or it does not reach us"

SECONDS = 10

_MEDIA = "_synapse/admin/v1/media"
_TIMEOUT = aiohttp.ClientTimeout(total=SECONDS)


class AdminRefused(Permanent):
    """The bot is no administrator of the homeserver, or that has no admin API as we know it."""


class Curtain:
    """Hides media from the homeserver's own users, as our bot, and shows them again."""

    def __init__(
        self, session: aiohttp.ClientSession, homeserver_url: str, as_token: str, bot: str
    ) -> None:
        self._session = session
        self._base = URL(homeserver_url)
        self._headers = {"Authorization": f"Bearer {as_token}"}
        self._bot = bot

    async def draw(self, mxc: Mxc, *, hidden: bool) -> bool:
        """Hides a media, or shows it again, with all that has the same bytes. Neither what is
        hidden already nor what the homeserver does not have is an error; False where it says that
        it does not.

        Raises AdminRefused, HomeserverUnavailable and RateLimited, which say nothing about this
        media, and FetchFailed, which does.
        https://element-hq.github.io/synapse/latest/admin_api/media_admin_api.html#quarantine-media
        """
        verb = "quarantine" if hidden else "unquarantine"
        url = self._base / _MEDIA / verb / mxc.server_name / mxc.media_id
        try:
            async with self._session.post(
                url.with_query({"user_id": self._bot}),
                json={},
                headers=self._headers,
                allow_redirects=False,
                timeout=_TIMEOUT,
            ) as response:
                if response.status == 200:
                    return True
                refusal = await read_refusal(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise HomeserverUnavailable(f"the homeserver does not answer: {reason}") from error
        return self._refused(refusal)

    def _refused(self, refusal: Refusal) -> bool:
        if refusal.status == 404 and refusal.errcode == "M_NOT_FOUND":
            return False
        if refusal.status == 403:
            raise AdminRefused(NOT_ADMIN.format(bot=self._bot))
        if refusal.status in {404, 405} or refusal.errcode == "M_UNRECOGNIZED":
            raise AdminRefused(NO_API)
        error = refusal.error(by_homeserver=True)
        raise error if isinstance(error, Retryable) else FetchFailed(str(error))
