"""A real clamd that knows one signature: that of a test string of our own."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.process import LOOPBACK, Server, accepts, free_port

# Harmless, and nobody else's: no scanner in the world but this one minds it.
INFECTION = b"matrix-media-archiver: the harmless string that a test's scanner finds"
SIGNATURE = "Archiver.Test"
FOUND = f"{SIGNATURE}.UNOFFICIAL"  # as clamd calls what is no signature of ClamAV's own

CONFIG = """\
Foreground yes
LogTime yes
DatabaseDirectory {signatures}
LocalSocket {folder}/clamd.sock
TCPSocket {port}
TCPAddr {host}
StreamMaxLength {stream_max}
TemporaryDirectory {folder}
"""


class Clamd(Server):
    """It listens on a port and on a socket, and keeps both over a stop and a restart."""

    def __init__(self, program: Path, folder: Path, *, stream_max: int = 10_000_000) -> None:
        """`stream_max`: bytes of a stream, above which it refuses it."""
        signatures = folder / "signatures"
        signatures.mkdir(parents=True)
        self.learn(signatures, SIGNATURE, INFECTION)
        port = free_port()
        self.address = f"{LOOPBACK}:{port}"
        self.socket = str(folder / "clamd.sock")
        config = folder / "clamd.conf"
        told = CONFIG.format(
            signatures=signatures, folder=folder, port=port, host=LOOPBACK, stream_max=stream_max
        )
        if os.geteuid() == 0:
            told += "User root\n"  # it becomes somebody else, who could not read the folder
        config.write_text(told, "utf-8")
        command = [str(program), "--config-file", str(config)]
        super().__init__("clamd", command, folder / "log", ready=lambda: accepts(port))

    @staticmethod
    def learn(signatures: Path, name: str, string: bytes) -> None:
        """Writes a signature for a string anywhere in any file, as sigtool(1) tells of them."""
        (signatures / f"{name}.ndb").write_text(f"{name}:0:*:{string.hex()}\n", "utf-8")
