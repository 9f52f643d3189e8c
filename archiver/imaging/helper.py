"""The helper process: `python -I -m archiver.imaging.helper`, a Unix stream socket as its stdin.

It says hello, then answers requests until the socket closes. Whatever it does not answer is
answered by its death.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from archiver.errors import CannotRender, NotAnImage, RequestError, TooLargeToRender
from archiver.imaging import wire
from archiver.imaging.confine import allow_seconds, confine
from archiver.imaging.recipe import Recipe

# What a request may ask for: its answer, and the bytes that follow.
Work = Callable[[dict[str, Any], int], tuple[dict[str, Any], bytes]]


def main() -> None:
    """Serves one archiver process."""
    with socket.socket(fileno=0) as channel:
        try:
            works = _load()
        except (ImportError, OSError) as error:
            channel.sendall(wire.line({"error": f"libvips cannot be loaded: {error}"}))
            return
        walls = confine()
        channel.sendall(wire.line({"walls": walls, "works": sorted(works)}))
        while _serve_one(channel, works):
            pass


def _load() -> dict[str, Work]:
    """All that can be asked for here. Imports now: afterwards no file can be opened."""
    from archiver.imaging import picture

    picture.set_up()
    works: dict[str, Work] = {
        "probe": lambda _, fd: (wire.probe_to_json(picture.probe(fd)), b""),
        "render": lambda request, fd: _rendered(picture.render(fd, _recipe(request))),
    }
    try:
        from archiver.imaging import footage
    except ImportError:  # without the extra `video`
        return works
    return works | {
        "footage": lambda _, fd: (footage.describe(fd)._asdict(), b""),
        "poster": lambda request, fd: _rendered(footage.poster(fd, _recipe(request))),
    }


def _serve_one(channel: socket.socket, works: dict[str, Work]) -> bool:
    data, descriptors, _, _ = socket.recv_fds(channel, wire.LINE, 1)
    if not data:
        return False
    fd = descriptors[0]
    try:
        answer, body = _answer(wire.parse(data), fd, works)
    finally:
        os.close(fd)
    channel.sendall(wire.line({**answer, "length": len(body)}))
    channel.sendall(body)
    return True


def _answer(
    request: dict[str, Any], fd: int, works: dict[str, Work]
) -> tuple[dict[str, Any], bytes]:
    allow_seconds(request["seconds"])
    try:
        return works[request["do"]](request, fd)
    except NotAnImage as error:
        refused: tuple[str, RequestError] = ("not_an_image", error)
    except CannotRender as error:
        refused = ("cannot", error)
    except TooLargeToRender as error:
        refused = ("too_large", error)
    except MemoryError:
        refused = ("too_large", TooLargeToRender("decoding this takes too much memory"))
    return {"refused": refused[0], "reason": str(refused[1])}, b""


def _recipe(request: dict[str, Any]) -> Recipe:
    return wire.recipe_from_json(request["recipe"])


def _rendered(made: wire.Rendered) -> tuple[dict[str, Any], bytes]:
    return wire.rendered_to_json(made), made.data


if __name__ == "__main__":
    main()
