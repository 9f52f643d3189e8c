"""Real servers as child processes: up when they answer, ended for certain, with their logs."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
# Below the range from which the kernel takes the ports of outgoing connections, so that a server
# which was stopped finds its port free when it comes back.
FIRST_PORT, LAST_PORT = 15_000, 30_000


class ServerError(Exception):
    """A server did not start, or not in time; the message holds the end of its log."""


class Owner(NamedTuple):
    """The system user under which a server runs when it refuses to be root."""

    uid: int
    gid: int


_running: list[Server] = []


def running() -> Sequence[Server]:
    """The servers that are up at this moment."""
    return tuple(_running)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    while True:
        port = random.randint(FIRST_PORT, LAST_PORT)  # noqa: S311 -- a port is no secret
        with socket.socket() as listener:
            try:
                listener.bind((LOOPBACK, port))
            except OSError:
                continue
        return port


def accepts(port: int) -> bool:
    """True when something takes connections on this loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    """True when a GET of this loopback URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 -- our own URL
            return bool(response.status == 200)
    except OSError:
        return False


class Server:
    """One child process in a session of its own: Ctrl-C reaches the tests alone, and they end it.

    All calls block; within a running loop use `asyncio.to_thread`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        owner: Owner | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._ready = ready
        self._env = {**os.environ, **(env or {})}
        self._owner = owner
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._told_before = 0

    @property
    def pid(self) -> int:
        """The process id of a server that was started."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True from `spawn` until the process is gone."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 60) -> None:
        """Returns when the server is ready. Raises ServerError after `timeout` seconds."""
        self.spawn()
        self.wait_ready(timeout)

    def spawn(self) -> None:
        """Starts the process without waiting for it."""
        assert not self.alive, f"{self.name} runs already"
        user, group = self._owner or (None, None)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        _running.append(self)

    def wait_ready(self, timeout: float = 60) -> None:
        """Waits until the server is ready. Raises ServerError, and leaves no process behind."""
        deadline = time.monotonic() + timeout
        while not self._ready():
            if not self.alive:
                self.kill()
                raise ServerError(f"{self.name} ended while it started:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.name} is not up in {timeout} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self, timeout: float = 20) -> int | None:
        """Asks the server to end, and waits for it as `ended` does."""
        if self.alive:
            os.kill(self.pid, self._stop_signal)
        return self.ended(timeout)

    def kill(self) -> None:
        """Ends the server and its children in its session, as a crash would (SIGKILL)."""
        self.ended(0)

    def ended(self, timeout: float = 20) -> int | None:
        """The exit status; negative for a signal, None for a server that was not running.

        Kills the server and its children when it does not end within `timeout` seconds.
        """
        if self._process is None:
            return None
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        status = self._process.returncode
        self._process = None
        _running.remove(self)
        return status

    def turn_page(self) -> None:
        """From now on `log_tail` shows only what is yet to be written."""
        self._told_before = self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, lines: int = 40) -> str:
        """The end of what the server wrote."""
        if not self.log.exists():
            return "(no log)"
        told = self.log.read_bytes()[self._told_before :].decode("utf-8", "replace")
        return "\n".join(told.splitlines()[-lines:])
