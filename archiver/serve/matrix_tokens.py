"""Matrix access tokens, judged by the homeserver that gave them out.

The homeserver is asked with the caller's own token, so the archive needs no power of its own, and
nothing else of the caller's request is passed on.

https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3accountwhoami
https://element-hq.github.io/synapse/latest/admin_api/user_admin_api.html
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import NamedTuple, TypeGuard
from urllib.parse import quote

import aiohttp
import structlog

from archiver.catalogue.tokens import hash_of
from archiver.errors import (
    CannotAsk,
    LimitExceeded,
    NoReader,
    RateLimited,
    UnknownToken,
)
from archiver.matrix.refusal import Refusal, read_refusal
from archiver.model import Scope
from archiver.serve.readers import Reader
from archiver.serve.remembered import Memory

WHOAMI = "/_matrix/client/v3/account/whoami"
IS_ADMIN = "/_synapse/admin/v1/users/{}/admin"

REMEMBER_SECONDS = 60.0
REMEMBER_REFUSED_SECONDS = 10.0
ANSWER_SECONDS = 10.0
AT_ONCE = 16  # questions under way, so that a flood of wrong tokens is none at the homeserver
MOST_WAITING = 500
RETRY_AFTER = 5.0

log = structlog.get_logger(__name__)

_TOKEN = re.compile(r"[!-~]+")  # nothing else goes into a header
# Of any age, and therefore of nearly any characters: but no control character.
_USER_ID = re.compile(r"@[^:\x00-\x20\x7f\ud800-\udfff]{0,255}:[!-~]{1,255}")


class Refused(NamedTuple):
    """The homeserver answered, and the archive does not let this token in."""

    error: UnknownToken | NoReader


class MatrixTokens:
    """Lets in the homeserver's administrators, and all its users if `local_users`.

    What the homeserver said is remembered for `remember` seconds, a refusal for
    `remember_refused`, and never for longer, even if it stops to answer: then nobody new comes in.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        homeserver_url: str,
        server_name: str,
        *,
        local_users: bool,
        remember: float = REMEMBER_SECONDS,
        remember_refused: float = REMEMBER_REFUSED_SECONDS,
    ) -> None:
        self._session = session
        self._url = homeserver_url
        self._server_name = server_name
        self._local_users = local_users
        self._remember, self._remember_refused = remember, remember_refused
        self._welcome = Memory[bytes, Reader]()
        self._unwelcome = Memory[bytes, Refused]()
        self._asked: dict[bytes, asyncio.Task[Reader | Refused]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def knows(self, token: str) -> bool:
        """True for one that was let in lately, though it may have to be asked for again."""
        return self._welcome.last(hash_of(token)) is not None

    async def reader(self, token: str) -> Reader:
        """Whose token it is, and what it may do here.

        Raises UnknownToken; NoReader for a good token of the wrong person; CannotAsk, and
        LimitExceeded when the homeserver says so.
        """
        if not _TOKEN.fullmatch(token):
            raise UnknownToken("this is no access token")
        digest = hash_of(token)
        answer = self._welcome.get(digest) or self._unwelcome.get(digest)
        if answer is None:
            answer = await asyncio.shield(self._question(token, digest))
        if isinstance(answer, Refused):
            raise answer.error.with_traceback(None)
        return answer

    def _question(self, token: str, digest: bytes) -> asyncio.Task[Reader | Refused]:
        """The one that is under way for this token, or a new one. It outlives who asked."""
        task = self._asked.get(digest)
        if task is None:
            if len(self._asked) >= MOST_WAITING:
                raise CannotAsk("too many new tokens wait for the homeserver", RETRY_AFTER)
            task = self._asked[digest] = asyncio.create_task(self._ask(token, digest))
            task.add_done_callback(lambda done: self._answered(digest, done))
        return task

    def _answered(self, digest: bytes, task: asyncio.Task[Reader | Refused]) -> None:
        del self._asked[digest]
        # Looked at, also if nobody waits for it any more.
        error = None if task.cancelled() else task.exception()
        if isinstance(error, CannotAsk):
            log.warning("a Matrix token could not be judged", reason=str(error))

    async def _ask(self, token: str, digest: bytes) -> Reader | Refused:
        asked_at = time.monotonic()
        async with self._slots:
            answer = await self._judge(token)
        if isinstance(answer, Reader):
            self._welcome.put(digest, answer, asked_at + self._remember)
        else:
            self._welcome.drop(digest)
            self._unwelcome.put(digest, answer, asked_at + self._remember_refused)
        return answer

    async def _judge(self, token: str) -> Reader | Refused:
        who = await self._get(WHOAMI, token)
        if refused := _refused(who):
            return refused
        user_id, guest = who.matrix.get("user_id"), who.matrix.get("is_guest", False)
        if who.status != 200 or not _is_user_id(user_id) or not isinstance(guest, bool):
            raise _odd(who)
        server_name = user_id.partition(":")[2]
        if server_name != self._server_name or guest:
            return _no("only users of this archive's own homeserver may read, and no guests")
        if await self._is_admin(user_id, token):
            return Reader(f"user:{user_id}", Scope.ADMIN)
        if self._local_users:
            return Reader(f"user:{user_id}", Scope.READ)
        return _no("only administrators of the homeserver may read the archive")

    async def _is_admin(self, user_id: str, token: str) -> bool:
        """Any plain refusal means no: Synapse says 403 to who is none, others know no such API."""
        said = await self._get(IS_ADMIN.format(quote(user_id, safe="")), token)
        admin = said.matrix.get("admin")
        if said.status == 200 and isinstance(admin, bool):
            return admin
        if said.status in {400, 403, 404, 405}:
            return False
        raise _odd(said)

    async def _get(self, path: str, token: str) -> Refusal:
        """An answer of any status, but 429. Never follows a redirect: the token would go along."""
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._session.get(
                    self._url + path, headers=headers, allow_redirects=False
                ) as response,
            ):
                said = await read_refusal(response)
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise CannotAsk(
                "the homeserver, which knows this token, does not answer: try again soon",
                RETRY_AFTER,
            ) from None
        error = said.error(by_homeserver=True) if said.status == 429 else None
        if isinstance(error, RateLimited):
            raise LimitExceeded(
                "the homeserver, which knows this token, is asked too often", error.retry_after
            )
        return said


def _refused(said: Refusal) -> Refused | None:
    if said.errcode is None:  # a proxy speaks for itself
        return None
    if said.status == 401:
        soft_logout = said.matrix.get("soft_logout") is True
        sentence = "the homeserver does not know this access token, or no longer"
        return Refused(UnknownToken(sentence, soft_logout=soft_logout))
    if said.status == 403:
        return _no("the homeserver lets the owner of this access token do nothing for now")
    return None


def _is_user_id(user_id: object) -> TypeGuard[str]:
    """True for what can be one, and be written into a log."""
    return isinstance(user_id, str) and bool(_USER_ID.fullmatch(user_id))


def _no(sentence: str) -> Refused:
    return Refused(NoReader(sentence))


def _odd(said: Refusal) -> CannotAsk:
    return CannotAsk(
        f"the homeserver, which knows this token, does not say whose it is ({said.status}): "
        "try again soon",
        RETRY_AFTER,
    )
