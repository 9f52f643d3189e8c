"""A real Synapse on loopback: SQLite, no federation, every limiter raised out of the way."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.matrix import MatrixUser, request
from tests.support.process import Server, answers, free_port

UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}

LIMITERS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "rc_message",
            "rc_registration",
            "rc_registration_token_validity",
            "rc_admin_redaction",
            "rc_joins_per_room",
            "rc_3pid_validation",
            "rc_third_party_invite",
            "rc_media_create",
            "rc_delayed_event_mgmt",
            "rc_room_creation",
            "rc_reports",
            "rc_user_directory",
        ),
        UNLIMITED,
    ),
    "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), UNLIMITED),
    "rc_joins": dict.fromkeys(("local", "remote"), UNLIMITED),
    "rc_invites": dict.fromkeys(("per_room", "per_user", "per_issuer"), UNLIMITED),
    "rc_presence": {"per_user": UNLIMITED},
    "remote_media_download_burst_count": "10G",
    "remote_media_download_per_second": "10G",
}


class Synapse:
    """A homeserver of our own. Start and stop block; in a running loop use `asyncio.to_thread`.

    It keeps its port and its data over a stop, a kill and a restart.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        *,
        registrations: Sequence[Path] = (),
        server_name: str = "archive.test",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`python` has Synapse installed; `extra` are lines of homeserver.yaml that win."""
        self.server_name = server_name
        self._folder = folder
        self._port = free_port()
        self._shared_secret = secrets.token_hex(16)
        folder.mkdir(parents=True, exist_ok=True)
        self._configure(registrations, extra or {})
        self._server = Server(
            "synapse",
            [str(python), "-m", "synapse.app.homeserver", "-c", str(folder / "homeserver.yaml")],
            folder / "synapse.log",
            ready=lambda: answers(f"{self.url}/health"),
            env={"PYTHONUNBUFFERED": "1"},
        )

    @property
    def url(self) -> str:
        """The homeserver's base URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when Synapse says that it is healthy. Raises ServerError."""
        self._server.start()

    def stop(self) -> None:
        """Asks Synapse to end."""
        self._server.stop()

    def kill(self) -> None:
        """A crash."""
        self._server.kill()

    def restart(self) -> None:
        """Stop and start: pushes that waited in memory are lost, as in real life."""
        self.stop()
        self.start()

    async def register(
        self, http: aiohttp.ClientSession, localpart: str, *, admin: bool = False
    ) -> MatrixUser:
        """A new local user, logged in (shared-secret registration)."""
        url = f"{self.url}/_synapse/admin/v1/register"
        nonce = (await request(http, "GET", url))["nonce"]
        password = secrets.token_hex(8)
        kind = "admin" if admin else "notadmin"
        signed = "\0".join((nonce, localpart, password, kind)).encode()
        answer = await request(
            http,
            "POST",
            url,
            json={
                "nonce": nonce,
                "username": localpart,
                "password": password,
                "admin": admin,
                "mac": hmac.new(self._shared_secret.encode(), signed, "sha1").hexdigest(),
            },
        )
        return MatrixUser(http, self.url, answer["user_id"], answer["access_token"])

    def _configure(self, registrations: Sequence[Path], extra: Mapping[str, Any]) -> None:
        key = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        (self._folder / "signing.key").write_text(f"ed25519 a_test {key}\n", "utf-8")
        settings = {**self._settings(), **extra}
        settings["app_service_config_files"] = [str(path) for path in registrations]
        files = {"homeserver.yaml": settings, "log.yaml": _logging()}
        for name, content in files.items():  # JSON is YAML, too
            (self._folder / name).write_text(json.dumps(content, indent=1), "utf-8")

    def _settings(self) -> dict[str, Any]:
        folder = self._folder
        return {
            "server_name": self.server_name,
            "public_baseurl": f"{self.url}/",
            "pid_file": str(folder / "homeserver.pid"),
            "listeners": [
                {
                    "port": self._port,
                    "type": "http",
                    "bind_addresses": ["127.0.0.1"],
                    "resources": [{"names": ["client"], "compress": False}],
                }
            ],
            "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
            "log_config": str(folder / "log.yaml"),
            "media_store_path": str(folder / "media"),
            "signing_key_path": str(folder / "signing.key"),
            "registration_shared_secret": self._shared_secret,
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "report_stats": False,
            "trusted_key_servers": [],
            "federation_domain_whitelist": [],
            "presence": {"enabled": False},
            "url_preview_enabled": False,
            "max_upload_size": "300M",
            "bcrypt_rounds": 4,
            **LIMITERS,
        }


def _logging() -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {"synapse.appservice": {"level": "INFO"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }
