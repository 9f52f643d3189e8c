"""What a command answers: sentences and tables, shown on a terminal, on a phone, or as JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from archiver.model import Mxc

# Bidirectional controls too: they are not printable.
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column says what a row is about."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """Lines to be shown as they stand, in letters of one width."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A picture on the homeserver, to be shown in the control room."""

    mxc: Mxc
    mimetype: str
    size: int
    width: int | None
    height: int | None
    name: str


@dataclass(frozen=True)
class Reply:
    """`parts` in their order. `data` is what `--json` prints. `failed`: it did not work."""

    parts: tuple[str | Table | Code, ...]
    data: Any = None
    failed: bool = False
    picture: Picture | None = None


def said(*parts: str | Table | Code, data: Any = None) -> Reply:
    """A reply of these parts."""
    return Reply(parts, data)


def plain(reply: Reply) -> str:
    """As text: a row of a table is a line, which a narrow screen breaks where it likes."""
    return "\n\n".join(
        "\n".join(_line(part.columns, row) for row in part.rows)
        if isinstance(part, Table)
        else printable(part.text if isinstance(part, Code) else part, keep="\n")
        for part in reply.parts
    )


def as_html(reply: Reply) -> str:
    """As Matrix's HTML: a row is an item of a list, because a table is wider than a phone.

    https://spec.matrix.org/v1.16/client-server-api/#mroommessage-msgtypes
    """
    return "".join(_part(part) for part in reply.parts)


def printable(text: str, keep: str = "") -> str:
    """What others wrote, without what a terminal or a reader would obey."""
    return "".join(c if c.isprintable() or c in keep else REPLACEMENT for c in text)


def _part(part: str | Table | Code) -> str:
    if isinstance(part, Table):
        return _list(part)
    if isinstance(part, Code):
        return f"<pre><code>{html.escape(printable(part.text, keep=chr(10)))}\n</code></pre>"
    return f"<p>{html.escape(printable(part, keep=chr(10))).replace(chr(10), '<br>')}</p>"


def _cells(columns: Iterable[str], row: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, printable(cell)) for name, cell in zip(columns, row, strict=True)]


def _line(columns: tuple[str, ...], row: tuple[str, ...]) -> str:
    (_, first), *others = _cells(columns, row)
    return f"• {first}" + "".join(
        f" · {name} {cell}".rstrip() if name else f" · {cell}" for name, cell in others if cell
    )


def _list(table: Table) -> str:
    return f"<ul>{''.join(_item(table.columns, row) for row in table.rows)}</ul>"


def _item(columns: tuple[str, ...], row: tuple[str, ...]) -> str:
    (_, first), *others = _cells(columns, row)
    rest = "".join(
        f" · {html.escape(name)} {html.escape(cell)}" if name else f" · {html.escape(cell)}"
        for name, cell in others
        if cell
    )
    return f"<li><strong>{html.escape(first)}</strong>{rest}</li>"
