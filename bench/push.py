"""The homeserver's side of a push, as Synapse does it: one at a time, over one connection.

    python -m bench.push PORT TOKEN SENDERS_TAG TRANSACTIONS

prints the seconds that each acknowledgement took, as a list in JSON. The transactions are made
before the clock starts, and the first ones are not counted.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.support.process import LOOPBACK

EVENTS = 100
WARM_UP = 20
SERVER_NAME = "archive.test"


class Refused(Exception):
    """The push was not answered with 200."""


class Pusher:
    """One connection on which transactions are pushed."""

    def __init__(self, port: int, token: str) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._token = token

    def push(self, body: bytes) -> float:
        """Returns the seconds until the acknowledgement was there. Raises Refused."""
        head = (
            f"PUT /_matrix/app/v1/transactions/{secrets.token_hex(8)} HTTP/1.1\r\n"
            f"Host: {LOOPBACK}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        request = head.encode() + body
        started = time.perf_counter()
        self._socket.sendall(request)
        answer = b""
        while not answer.endswith(b"{}"):
            more = self._socket.recv(65536)
            answer += more
            if not more or not answer.startswith(b"HTTP/1.1 200"[: len(answer)]):
                raise Refused(answer.decode("utf-8", "replace"))
        return time.perf_counter() - started

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()


def transaction(mxcs: Sequence[str], tag: str) -> bytes:
    """A transaction of one m.image for each of `mxcs`, all by new events."""
    events = [image(mxc, f"${tag}-{number}") for number, mxc in enumerate(mxcs)]
    return json.dumps({"events": events, "ephemeral": []}).encode()


def image(mxc: str, event_id: str) -> dict[str, Any]:
    """An m.image as Synapse pushes one that Element sent."""
    return {
        "type": "m.room.message",
        "event_id": event_id,
        "room_id": "!jWkUqUGdQHbRUBmDQHnVEHxtGGTr0H2JmkV7DnkNhqo",
        "sender": f"@alice:{SERVER_NAME}",
        "user_id": f"@alice:{SERVER_NAME}",
        "origin_server_ts": int(time.time() * 1000),
        "age": 42,
        "unsigned": {"age": 42, "membership": "join"},
        "content": {
            "msgtype": "m.image",
            "body": "IMG_20250614_171502.jpg",
            "filename": "IMG_20250614_171502.jpg",
            "url": mxc,
            "info": {
                "w": 1600,
                "h": 1200,
                "size": 102_400,
                "mimetype": "image/jpeg",
                "xyz.amorgan.blurhash": "LEHV6nWB2yk8pyo0adR*.7kCMdnj",
            },
            "m.mentions": {},
        },
    }


def main(port: str, token: str, tag: str, count: str) -> None:
    """Pushes, and prints what each acknowledgement took."""
    bodies = [
        transaction([f"mxc://{SERVER_NAME}/{tag}{n:05}{m:03}" for m in range(EVENTS)], f"{tag}{n}")
        for n in range(WARM_UP + int(count))
    ]
    pusher = Pusher(int(port), token)
    print(json.dumps([pusher.push(body) for body in bodies][WARM_UP:]))
    pusher.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
