"""How what a command says looks on a terminal."""

from __future__ import annotations

import signal
from types import TracebackType

import click
import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from archiver.control.reply import Code, Reply, Table, plain, printable

# A row is a line for a program that reads it.
ENDLESS = 10_000


class Terminal:
    """Standard output for what was asked for, standard error for all that is said besides."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        console = Console(stderr=True)
        self._live = Live(console=console, transient=True) if console.is_terminal else None
        self._told_alone = False

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._still()

    async def progress(self, reply: Reply) -> None:
        """Shows how far it is, in place of what was there; nothing where no one watches."""
        if self._live:
            self._live.start()  # which it may be already
            self._live.update(Text(plain(reply)), refresh=True)

    async def tell_alone(self, reply: Reply) -> None:
        """Prints what is secret, and nothing else after it, so that a script can take it."""
        self._still()
        show(reply, as_json=self._as_json)
        self._told_alone = True

    def tell(self, reply: Reply) -> None:
        """Prints the outcome."""
        self._still()
        if self._told_alone:
            show(reply, err=True)
        else:
            show(reply, as_json=self._as_json)

    def confirm(self, preview: Reply) -> None:
        """Shows what would go, and ends the command unless the answer is yes."""
        self._still()
        show(preview, err=True)
        # While it waits here, the loop's own handler would only make a note of a Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            click.confirm("Do it?", abort=True, err=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def _still(self) -> None:
        if self._live:
            self._live.stop()


def show(reply: Reply, *, as_json: bool = False, err: bool = False) -> None:
    """Prints a reply for people, or its `data` for scripts."""
    if as_json:
        data = _parts(reply) if reply.data is None else reply.data
        click.echo(orjson.dumps(data, default=str), err=err)
        return
    console = Console(stderr=err)
    if not console.is_terminal:
        console.width = ENDLESS
    title = True
    for part in reply.parts:
        if not title:
            click.echo(err=err)
        title = isinstance(part, str) and part.endswith(":")
        if isinstance(part, Table):
            with console.capture() as lines:
                console.print(_table(part))
            click.echo("\n".join(map(str.rstrip, lines.get().splitlines())), err=err)
        else:  # not by rich, which would cut what is to be copied
            click.echo(printable(_text(part), keep="\n"), err=err)


def _parts(reply: Reply) -> list[object]:
    return [
        [dict(zip(part.columns, row, strict=True)) for row in part.rows]
        if isinstance(part, Table)
        else _text(part)
        for part in reply.parts
    ]


def _text(part: str | Code) -> str:
    return part.text if isinstance(part, Code) else part


def _table(table: Table) -> RichTable:
    shown = RichTable(*table.columns, box=None, show_header=any(table.columns))
    for row in table.rows:
        shown.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return shown
