"""The archiver as its users run it: `archiver init`, `archiver run`, as processes of their own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import yaml

from tests.support.process import Server, answers, free_port

ARCHIVER = [sys.executable, "-m", "archiver"]


class Archiver:
    """An archive of a test's own, beside a homeserver. It keeps data and ports over a restart.

    `settings` are sections of config.yaml that win. Without a database URL it uses the embedded
    server. Start, stop and kill block; in a running loop use `asyncio.to_thread`.
    """

    def __init__(
        self, folder: Path, *, server_name: str = "archive.test", only: str | None = None
    ) -> None:
        """`only` are the parts that its process has; `serve` must be among them."""
        self.folder = folder
        self.push_port, self.serve_port = free_port(), free_port()
        self._server_name = server_name
        self._token: str | None = None
        parts = ["--only", only] if only else []
        self._server = Server(
            "archiver",
            [*ARCHIVER, "run", "-c", str(self.config), *parts],
            folder / "archiver.log",
            ready=lambda: answers(f"{self.url}/healthz"),
        )

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "config.yaml"

    @property
    def registration(self) -> Path:
        """The registration, for the homeserver."""
        return self.folder / "registration.yaml"

    @property
    def url(self) -> str:
        """Where readers ask."""
        return f"http://127.0.0.1:{self.serve_port}"

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        return self._server.pid

    @property
    def log(self) -> str:
        """All that `archiver run` said so far."""
        log = self._server.log
        return log.read_text("utf-8") if log.exists() else ""

    def init(self) -> str:
        """`archiver init`, and what it prints: the lines for homeserver.yaml.

        The homeserver's address follows with `configure`, once it is known.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.command(
            "init",
            *("--homeserver", "http://127.0.0.1:1"),
            *("--server-name", self._server_name),
            *("--directory", str(self.folder)),
            *("--push-url", f"http://127.0.0.1:{self.push_port}"),
        )

    def configure(self, homeserver_url: str, settings: Mapping[str, Any] | None = None) -> None:
        """Writes what this test wants into the file that `init` made."""
        values = yaml.safe_load(self.config.read_text("utf-8"))
        ours = {
            "homeserver": {"url": homeserver_url},
            "appservice": {"listen": f"127.0.0.1:{self.push_port}"},
            "serve": {
                "listen": f"127.0.0.1:{self.serve_port}",
                "public_url": self.url,
                "rate_limit": None,  # tests ask as fast as they can
            },
        }
        for section, keys in [*ours.items(), *(settings or {}).items()]:
            values[section] = {**values.get(section, {}), **keys}
        self.config.write_text(yaml.safe_dump(values), "utf-8")
        self._token = None  # it may be another database now

    def command(self, *arguments: str) -> str:
        """Runs `archiver …` to its end and returns what it printed. Raises CalledProcessError."""
        done = self.attempt(*arguments)
        done.check_returncode()
        return done.stdout

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `archiver …` to its end, however that is."""
        return subprocess.run(
            [*ARCHIVER, *arguments], check=False, capture_output=True, text=True, timeout=120
        )

    def start(self) -> None:
        """Returns when it serves."""
        self._server.start()

    def stop(self) -> int | None:
        """Asks it to end, as a service manager does; returns its exit status."""
        return self._server.stop(60)

    def interrupt(self) -> int | None:
        """Ctrl-C, which reaches every process of its group; returns its exit status."""
        os.killpg(self.pid, signal.SIGINT)
        return self._server.ended(60)

    def interrupt_twice(self) -> int | None:
        """As timeout(1) does: the process, and its group as well; returns its exit status."""
        os.kill(self.pid, signal.SIGINT)
        return self.interrupt()

    def kill(self) -> None:
        """A crash."""
        self._server.kill()

    def helper(self, name: str, only: str) -> Server:
        """Another process of the same archive, for the parts `only`; up when it says so."""
        log = self.folder / f"{name}.log"
        return Server(
            name,
            [*ARCHIVER, "run", "-c", str(self.config), "--only", only],
            log,
            ready=lambda: "the archive is up" in log.read_text("utf-8"),
        )

    @property
    def token(self) -> str:
        """A token with scope read, made at the first use."""
        if self._token is None:
            name = f"test-{secrets.token_hex(4)}"
            made = self.command("token", "create", name, "--scope", "read", "-c", str(self.config))
            self._token = made.strip()
        return self._token

    @property
    def dsn(self) -> str:
        """The way into its database, also into the embedded one while that is up."""
        database = yaml.safe_load(self.config.read_text("utf-8"))["database"]
        if database["url"] != "embedded":
            return str(database["url"])
        folder = self.folder / database["data_dir"]
        password = (folder / "password").read_text("utf-8").strip()
        socket = quote(str((folder / "run").resolve()), safe="")
        return f"postgresql://archiver:{quote(password, safe='')}@/archiver?host={socket}"

    async def push(self, http: aiohttp.ClientSession, body: bytes, transaction: str) -> int:
        """Pushes a transaction as a homeserver does, and returns the status of the answer."""
        hs_token = yaml.safe_load(self.registration.read_text("utf-8"))["hs_token"]
        url = f"http://127.0.0.1:{self.push_port}/_matrix/app/v1/transactions/{transaction}"
        headers = {"Authorization": f"Bearer {hs_token}"}
        async with http.put(url, data=body, headers=headers) as response:
            return response.status


class Reader:
    """Someone who reads the archive with a token of it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, token: str) -> None:
        self._http = http
        self.url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    async def state(self, mxc: str) -> dict[str, Any]:
        """What `/api/v1/media/…` says of a media; `{}` while the archive has not heard of it."""
        url = f"{self.url}/api/v1/media/{mxc.removeprefix('mxc://')}"
        async with self._http.get(url, headers=self._headers) as response:
            if response.status == 404:
                return {}
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
            return answer

    async def until(self, state: str, *mxcs: str, timeout: float = 60) -> None:
        """Waits until every media is in `state`. Raises TimeoutError with what is missing."""
        deadline = time.monotonic() + timeout
        waiting = set(mxcs)
        while True:
            found = {mxc: await self.state(mxc) for mxc in waiting}
            waiting = {mxc for mxc, media in found.items() if media.get("state") != state}
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {state}: {[found[mxc] or mxc for mxc in waiting]}")
            await asyncio.sleep(0.05)

    async def stats(self) -> dict[str, Any]:
        """The archive in figures."""
        async with self._http.get(f"{self.url}/api/v1/stats", headers=self._headers) as response:
            assert response.status == 200, await response.text()
            figures: dict[str, Any] = await response.json()
            return figures

    async def events_of(self, event_type: str) -> int:
        """How many events of a type the archive has."""
        return int((await self.stats())["events"].get(event_type, 0))

    async def json(self, path: str) -> dict[str, Any]:
        """What our API says at `path`."""
        async with self._http.get(self.url + path, headers=self._headers) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
            return answer

    async def body(self, path: str) -> bytes:
        """The media that `path` stands for."""
        async with self._http.get(self.url + path, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            return await response.read()

    async def lacks(self, path: str) -> bool:
        """True when there is nothing at `path`."""
        async with self._http.get(self.url + path, headers=self._headers) as response:
            return response.status == 404

    def ask(self, path: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer to a GET, whatever it is."""
        return self._http.get(self.url + path, headers=self._headers)

    async def download(self, mxc: str, *, hidden: bool = False) -> bytes:
        """The bytes as the Matrix face serves them; with `hidden` also those that it hides."""
        async with self.get(f"{mxc}?hidden=true" if hidden else mxc) as response:
            assert response.status == 200, await response.text()
            assert response.headers["X-Cache"] == "HIT"
            return await response.read()

    def get(
        self, mxc: str, method: str = "GET", **headers: str
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer to a download, whatever it is. Underscores in `headers` are hyphens."""
        url = f"{self.url}/_matrix/client/v1/media/download/{mxc.removeprefix('mxc://')}"
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._http.request(method, url, headers={**self._headers, **more})


async def eventually(
    what: str, condition: Callable[[], bool | Awaitable[bool]], timeout: float = 60
) -> None:
    """Waits until `condition` holds. Raises TimeoutError that says `what` did not happen."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {timeout} s it did not happen that {what}")
        await asyncio.sleep(0.005)


def reachable_folder() -> Path:
    """A folder for an archive's data that PostgreSQL's user can reach, also when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="archiver-test-"))
    folder.chmod(0o711)
    return folder
