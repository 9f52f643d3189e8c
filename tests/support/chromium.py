"""A headless Chromium, steered over its own protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.process import LOOPBACK, Server

DEADLINE_SECONDS = 60
# No sandbox of its own: root has none, and not every kernel lets an ordinary user make one. Its
# walls between sites stand all the same. It knows no host but this one.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-software-rasterizer",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
)


class ScriptError(Exception):
    """What a page was asked to evaluate threw, or Chromium refused a command."""


class Page:
    """One page, with all that is framed in it. What Chromium tells of it is kept until the next
    visit."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: list[dict[str, Any]] = []
        self._begun: set[asyncio.Task[None]] = set()

    async def visit(self, url: str) -> str:
        """Goes there, and returns when that is loaded; or why it did not go there."""
        self._events.clear()
        gone = await self.command("Page.navigate", url=url)
        if refused := gone.get("errorText"):
            return str(refused)
        await self.until("document.readyState === 'complete'")
        return ""

    async def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, or what its promise comes to. Raises ScriptError."""
        answer = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if thrown := answer.get("exceptionDetails"):
            raise ScriptError(thrown.get("exception", {}).get("description", thrown["text"]))
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Returns when JavaScript is true. Raises TimeoutError when it never is."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await self.evaluate(expression):  # noqa: ASYNC110  # nobody tells us
                await asyncio.sleep(0.01)

    def events(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a kind since the visit began."""
        return [event["params"] for event in self._events if event["method"] == method]

    @property
    def console(self) -> list[str]:
        """What scripts said, and what of them was refused or failed, in every frame."""
        said = self.events("Runtime.consoleAPICalled")
        texts = [" ".join(str(word.get("value")) for word in call["args"]) for call in said]
        thrown = self.events("Runtime.exceptionThrown")
        texts += [str(failure["exceptionDetails"]) for failure in thrown]
        return texts + [str(each["entry"]["text"]) for each in self.events("Log.entryAdded")]

    async def command(
        self, method: str, session: str | None = None, **params: Any
    ) -> dict[str, Any]:
        """What Chromium answers; `session` is a frame in a process of its own."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({**message, "sessionId": session} if session else message)
        async with asyncio.timeout(DEADLINE_SECONDS):
            answer = await self._answers[number]
        if "error" in answer:
            raise ScriptError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def listen(self) -> None:
        """Takes in what Chromium says, until the connection ends."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
                continue
            self._events.append(said)
            if said["method"] == "Target.attachedToTarget":
                self._begin(said["params"]["sessionId"])

    async def watch(self, session: str | None = None) -> None:
        """Lets Chromium tell all that this class wants to know."""
        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        await self.command("Target.setAutoAttach", session, **attach)
        for domain in ("Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable", session)
        await self.command("Runtime.runIfWaitingForDebugger", session)

    def _begin(self, session: str) -> None:
        task = asyncio.create_task(self._watch_frame(session))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _watch_frame(self, session: str) -> None:
        with contextlib.suppress(ScriptError):  # it is gone already
            await self.watch(session)


class Chromium:
    """A browser of the tests' own. Start and stop block."""

    def __init__(self, program: Path, folder: Path) -> None:
        """`folder` takes its profile and its log; it is made."""
        folder.mkdir()
        self._address = folder / "profile" / "DevToolsActivePort"
        self._server = Server(
            "chromium",
            [str(program), *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            folder / "chromium.log",
            ready=lambda: self._port() is not None,
            env={"HOME": str(folder)},
        )

    def start(self) -> None:
        """Returns when it takes commands. Raises ServerError."""
        self._server.start()

    def stop(self) -> None:
        """Ends it and its children at once; there is nothing to keep."""
        self._server.kill()

    @asynccontextmanager
    async def page(self, http: aiohttp.ClientSession) -> AsyncIterator[Page]:
        """A new, empty page, which may store no downloads; closed at the end."""
        base = f"http://{LOOPBACK}:{self._port()}/json"
        async with http.put(f"{base}/new?about:blank") as response:
            made = await response.json()
        async with http.ws_connect(made["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            await page.command("Page.enable")
            await page.command("Browser.setDownloadBehavior", behavior="deny", eventsEnabled=True)
            await page.watch()
            try:
                yield page
            finally:
                listening.cancel()
                await asyncio.wait([listening])
        async with http.get(f"{base}/close/{made['id']}") as response:
            await response.read()

    def _port(self) -> int | None:
        """The first line of a file that it writes once it listens."""
        try:
            lines = self._address.read_text("utf-8").splitlines()
        except OSError:
            return None
        return int(lines[0]) if len(lines) == 2 else None
