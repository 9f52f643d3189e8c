"""What people post while something else goes on: small pushes at an even pace.

    python -m bench.live PORT TOKEN

The first line on standard input holds the media to name, as a list in JSON; it pushes until
standard input ends, and prints the seconds that each acknowledgement took.
"""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.push import Pusher, transaction

EVENTS = 3
A_SECOND = 40


@contextmanager
def people_posting(port: int, token: str, mxcs: Sequence[str]) -> Iterator[list[float]]:
    """People post until the end of the block; then the list holds what was measured."""
    seconds: list[float] = []
    command = [sys.executable, "-m", "bench.live", str(port), token]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as client:
        assert client.stdin is not None
        client.stdin.write(json.dumps(mxcs) + "\n")
        client.stdin.flush()
        yield seconds
        found, _ = client.communicate()
        assert client.returncode == 0, "a push was refused"
        seconds += json.loads(found)


def main(port: str, token: str) -> None:
    """Pushes, and prints what each acknowledgement took."""
    mxcs = json.loads(sys.stdin.readline())
    over = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
    pusher = Pusher(int(port), token)
    seconds: list[float] = []
    turn = time.monotonic()
    while not over.wait(max(0.0, turn - time.monotonic())):
        some = random.sample(mxcs, EVENTS)
        seconds.append(pusher.push(transaction(some, secrets.token_hex(8))))
        turn = max(turn + 1 / A_SECOND, time.monotonic())
    print(json.dumps(seconds))
    pusher.close()


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
