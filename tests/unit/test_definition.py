"""Commands are defined once: their usage, what they take, what they refuse, and how help tells."""

from __future__ import annotations

import click
import pytest

from archiver.control.arguments import ANY_TARGET, MXC, Target
from archiver.control.asked import Asked
from archiver.control.commands.helping import describe, find, nearest, with_help
from archiver.control.definition import Command, command
from archiver.control.reply import Reply, Table, plain, said
from archiver.errors import Misused, OperationError


@command("hold", changes=True)
@click.argument("target", type=ANY_TARGET, help="What it is about.")
@click.argument("reason", nargs=-1, required=True)
async def hold(asked: Asked, target: Target, reason: tuple[str, ...]) -> Reply:
    """Keep TARGET as it is,
    for good.

    REASON is shown in lists.
    It may be long.
    """
    return said("")


@command("token create")
@click.argument("name")
@click.option("--scope", type=click.Choice(["read", "admin"]), required=True, help="How much.")
@click.option("--expires", metavar="SPAN", help="When it ends.")
@click.option("--quiet", is_flag=True)
async def create(asked: Asked, name: str, scope: str, expires: str | None, quiet: bool) -> Reply:
    """Make a token."""
    return said("")


async def preview(asked: Asked, mxc: Target) -> Reply:
    """Tells what would go."""
    return said("")


@command("delete", asks=preview)
@click.argument("mxc", type=MXC)
async def delete(asked: Asked, mxc: Target) -> Reply:
    """Delete a media."""
    return said("")


COMMANDS = with_help((hold, create, delete))


@pytest.mark.parametrize(
    ("one", "usage"),
    [
        (hold, "hold TARGET REASON..."),
        (create, "token create NAME --scope [read|admin] [--expires SPAN] [--quiet]"),
        (delete, "delete MXC"),
        (COMMANDS[0], "help [COMMAND]..."),
    ],
)
def test_usage_names_every_argument_and_option(one: Command, usage: str) -> None:
    """What may be left out stands in brackets."""
    assert one.usage == usage


def test_help_is_the_docstring_and_its_first_line_the_summary() -> None:
    """Indentation is not part of it."""
    assert create.summary == create.help == "Make a token."
    assert hold.help.endswith("REASON is shown in lists.\nIt may be long.")


def test_what_asks_changes_something() -> None:
    """So custody hears of it."""
    assert (hold.changes, hold.asks) == (True, None)
    assert (delete.changes, delete.asks) == (True, preview)
    assert not create.changes


def test_words_become_arguments() -> None:
    """By name, converted, in the order in which they were given."""
    assert hold.parse(["@a:b", "for", "the", "court"]) == {
        "target": Target("user", "@a:b"),
        "reason": ("for", "the", "court"),
    }
    assert create.parse(["--scope", "read", "panel"]) == {
        "name": "panel",
        "scope": "read",
        "expires": None,
        "quiet": False,
    }


@pytest.mark.parametrize(
    ("one", "words", "said_of_it"),
    [
        (hold, [], "Missing argument 'TARGET'"),
        (hold, ["@a:b"], "Missing argument 'REASON...'"),
        (hold, ["cat.png", "x"], "'cat.png' is not a media like mxc://server/id or an event"),
        (delete, ["@a:b"], "'@a:b' is not a media like mxc://server/id"),
        (delete, ["mxc://a/b", "mxc://a/c"], "unexpected extra argument"),
        (create, ["panel"], "Missing option '--scope'"),
        (create, ["panel", "--scope", "all"], "'all' is not one of 'read', 'admin'"),
        (create, ["panel", "--scop", "read", "--colour"], "No such option"),
        (create, ["panel", "--help"], "No such option"),
    ],
)
def test_wrong_words_are_refused_with_the_usage(
    one: Command, words: list[str], said_of_it: str
) -> None:
    """The message says what is wrong with which of them, nothing is printed, nothing ends."""
    with pytest.raises(Misused) as refused:
        one.parse(words)
    assert said_of_it in str(refused.value)
    assert refused.value.usage == one.usage


def test_a_command_is_found_by_one_word_or_two_in_any_case() -> None:
    """What is behind its name stays as it was given."""
    assert find(COMMANDS, ["Token", "CREATE", "Panel"]) == (create, ["Panel"])
    assert find(COMMANDS, ["HOLD", "@A:b"]) == (hold, ["@A:b"])
    assert find(COMMANDS, ["hold"]) == (hold, [])
    assert find(COMMANDS, ["token"]) is None
    assert find(COMMANDS, []) is None


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["hlod", "x"], ["hold"]),
        (["deleet"], ["delete"]),
        (["token"], ["token create"]),
        (["tokn", "create"], ["token create"]),
        (["xyzzy"], []),
        ([""], []),
        ([], []),
    ],
)
def test_the_nearest_names_are_suggested(words: list[str], meant: list[str]) -> None:
    """And none where nothing is near."""
    assert nearest(COMMANDS, words) == meant


def test_help_lists_every_command_with_its_summary() -> None:
    """Itself too, in the order in which they were given."""
    table = describe(COMMANDS, ()).parts[0]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["help", "hold", "token create", "delete"]
    assert table.rows[2][1] == "Make a token."


def test_help_of_one_tells_its_usage_its_text_and_its_arguments() -> None:
    """Lines that only the source breaks are joined."""
    assert plain(describe(COMMANDS, ["hold"])) == (
        "hold TARGET REASON...\n\n"
        "Keep TARGET as it is, for good.\n\nREASON is shown in lists. It may be long.\n\n"
        "• TARGET · What it is about."
    )
    told = plain(describe(COMMANDS, ["token", "create"]))
    assert "• --scope [read|admin] · How much." in told
    assert "• --expires SPAN · When it ends." in told
    assert "• --quiet" in told


def test_help_of_a_first_word_lists_what_begins_with_it() -> None:
    """`help token` tells of all commands about tokens."""
    assert "token create" in plain(describe(COMMANDS, ["token"]))
    assert "hold" not in plain(describe(COMMANDS, ["token"]))


def test_help_of_what_is_not_there_suggests_the_nearest() -> None:
    """Or how all are listed."""
    with pytest.raises(OperationError, match="did you mean `hold`"):
        describe(COMMANDS, ["hould"])
    with pytest.raises(OperationError, match="`help` lists them"):
        describe(COMMANDS, ["xyzzy"])
