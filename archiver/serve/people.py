"""What people are called and look like, and did."""

from __future__ import annotations

from aiohttp import web

from archiver.catalogue import people
from archiver.catalogue.people import Face
from archiver.db.pool import Pool
from archiver.errors import NotFound
from archiver.model import Scope
from archiver.serve.answers import reply
from archiver.serve.auth import SCOPE
from archiver.serve.content import Content
from archiver.serve.database import connection
from archiver.serve.paging import named


class People:
    """Answers with users. Where it `hides_redacted`, former names and faces that were redacted are
    for administrators only."""

    def __init__(self, pool: Pool, content: Content, *, hides_redacted: bool) -> None:
        self._pool = pool
        self._content = content
        self._hides_redacted = hides_redacted

    async def get(self, request: web.Request) -> web.Response:
        """The present name and avatar of a user, and the former ones."""
        user_id = named(request, "user_id")
        sees_all = not self._hides_redacted or request[SCOPE] is Scope.ADMIN
        async with connection(self._pool) as conn:
            face = await people.face(conn, user_id)
            history = await people.faces(conn, user_id, also_redacted=sees_all)
        if face is None and not history:
            raise _unknown()
        displayname, avatar = face or Face(None, None)
        return reply(
            {
                "user_id": user_id,
                "displayname": displayname,
                "avatar": str(avatar) if avatar else None,
                "history": history,
            }
        )

    async def avatar(self, request: web.Request) -> web.StreamResponse:
        """The bytes of the user's present avatar, looked up each time."""
        user_id = named(request, "user_id")
        async with connection(self._pool) as conn:
            face = await people.face(conn, user_id)
        if face is None:
            raise _unknown()
        if face.avatar is None:
            raise NotFound("this user has no avatar")
        return await self._content.send(request, face.avatar, changes=True)


def _unknown() -> NotFound:
    return NotFound("the archive has seen nobody of this name in a room")
