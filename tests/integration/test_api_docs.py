"""What docs/api.md gives to copy and paste works as it is, against a real server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.test_openapi import filled  # noqa: F401  # a fixture, asked for by name
from tests.support.samples import png
from tests.support.serving import Archive, Reader

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```(sh|python|js)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = {"sh": ["sh", "-ec"], "python": [sys.executable, "-c"]}
if node := shutil.which("node"):
    COMMANDS["js"] = [node, "--input-type=module", "-e"]
# What each prints, in the page's order.
EXPECTED = [
    '"count":{"matches":1,"exact":true}',
    '{"media":[],"next":null}',
    '"mxc":"mxc://example.com/SomeMediaId"',
    "304",
    '"url":"http',
    "Garden cat.jpg ready None",
    "Al cat.jpg ready\ntrue",
]


def test_every_snippet_is_tried() -> None:
    """There is an expectation for each."""
    assert len(SNIPPETS) == len(EXPECTED)
    assert {language for language, _ in SNIPPETS} == {"sh", "python", "js"}


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [
        (language, code, expected)
        for (language, code), expected in zip(SNIPPETS, EXPECTED, strict=False)
        if language in COMMANDS
    ],
    ids=lambda part: part.split("\n")[0][:30],
)
async def test_a_snippet_works(
    filled: Archive,  # noqa: F811  # the fixture
    reader: Reader,
    tmp_path: Path,
    language: str,
    code: str,
    expected: str,
) -> None:
    """It ends well, prints what it should, and writes whole files."""
    folder = tmp_path / "here"
    folder.mkdir()
    running = await asyncio.create_subprocess_exec(
        *COMMANDS[language],
        code,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "ARCHIVE": str(reader.server.make_url("")).rstrip("/"),
            "TOKEN": reader.headers["Authorization"].removeprefix("Bearer "),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await running.communicate()
    assert running.returncode == 0, output.decode()
    assert expected in output.decode()
    for name in ("cat.jpg", "copy", "whole"):
        if (file := folder / name).exists():
            assert file.read_bytes() == png(4, 3, (1, 2, 3))
