"""The accounts of `support.homeserver`: whose access token it is, and who is an administrator."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from archiver.serve.matrix_tokens import IS_ADMIN, WHOAMI
from tests.support.homeserver import SERVER_NAME, Answer, Homeserver, error

ADMIN, USER, GUEST, ABROAD = "syt_admin", "syt_user", "syt_guest", "syt_abroad"
ALICE, BOB = f"@alice:{SERVER_NAME}", f"@bob:{SERVER_NAME}"


@dataclass
class Account:
    """Who comes with a token."""

    user_id: str
    admin: bool = False
    guest: bool = False


class Accounts:
    """Teaches a homeserver its users; tokens may be added and taken while it runs."""

    def __init__(self, homeserver: Homeserver) -> None:
        self.homeserver = homeserver
        self.tokens = {
            ADMIN: Account(ALICE, admin=True),
            USER: Account(BOB),
            GUEST: Account(f"@1:{SERVER_NAME}", guest=True),
            ABROAD: Account("@alice:elsewhere.test", admin=True),
        }
        homeserver.give(WHOAMI, self._whoami)
        for account in self.tokens.values():
            homeserver.give(IS_ADMIN.format(account.user_id), self._is_admin)

    def asked(self, path: str = WHOAMI) -> int:
        """How often the homeserver was asked."""
        return sum(seen.path == path for seen in self.homeserver.seen)

    def instead(self, path: str, answer: Answer) -> None:
        """Another answer at that path, from now on."""
        self.homeserver.give(path, answer)

    def as_before(self) -> None:
        """The usual answer to whoami."""
        self.homeserver.give(WHOAMI, self._whoami)

    async def _whoami(self, request: web.Request) -> web.StreamResponse:
        if account := self._account(request):
            said = {"user_id": account.user_id, "is_guest": account.guest, "device_id": "D"}
            return web.json_response(said)
        return await error(401, "M_UNKNOWN_TOKEN", soft_logout=False)(request)

    async def _is_admin(self, request: web.Request) -> web.StreamResponse:
        """As Synapse: nobody else learns it."""
        account = self._account(request)
        if account is None:
            return await error(401, "M_UNKNOWN_TOKEN")(request)
        if not account.admin:
            return await error(403, "M_FORBIDDEN")(request)
        return web.json_response({"admin": True})

    def _account(self, request: web.Request) -> Account | None:
        return self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
