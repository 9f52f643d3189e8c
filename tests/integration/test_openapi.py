"""The OpenAPI document: every route is in it, every path is real, and so is every answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from aiohttp.test_utils import TestServer
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from archiver.model import Role, Scope, State
from archiver.serve import openapi
from archiver.serve.listing import KINDS
from tests.support.samples import png
from tests.support.serving import Archive, Reader, member, serving, state

DOCUMENT = openapi.document()
ROOM, ALICE = "!abc:example.com", "@al:example.com"
SEED = 1
EXAMPLES = 8
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]


@pytest.fixture
async def filled(archive: Archive) -> Archive:
    """What the document's examples name is here."""
    mxc = await archive.put(png(4, 3, (1, 2, 3)))
    await archive.pool.execute(
        "UPDATE media SET server_name = 'example.com', media_id = 'SomeMediaId'"
        " WHERE media_id = $1",
        mxc.media_id,
    )
    image = {"msgtype": "m.image", "url": "mxc://example.com/SomeMediaId"}
    image |= {"filename": "cat.jpg", "body": "On holiday"}
    poll = {
        "m.poll": {
            "question": {"m.text": "Tea?"}, "kind": "m.disclosed", "max_selections": 1,
            "answers": [{"m.id": "y", "m.text": "Yes"}, {"m.id": "n", "m.text": "No"}],
        }
    }  # fmt: skip
    await archive.record(
        state("m.room.name", {"name": "Garden"}, room=ROOM),
        state("m.room.avatar", {"url": "mxc://example.com/SomeMediaId"}, room=ROOM),
        member(ALICE, 1, ROOM, displayname="Al", avatar_url="mxc://example.com/SomeMediaId"),
        state("m.room.message", image, 2, room=ROOM, sender=ALICE, event_id="$abc")
        | {"state_key": None},
        state("m.poll.start", poll, 3, room=ROOM, event_id="$poll") | {"state_key": None},
    )
    await archive.pool.execute("INSERT INTO room (room_id) VALUES ($1)", ROOM)
    return archive


@pytest.fixture
async def server(filled: Archive, database_url: str) -> AsyncIterator[TestServer]:
    async with serving(filled, database_url) as server:
        yield server


def real_routes(server: TestServer) -> Iterator[tuple[str, str]]:
    """As the document names them: a slash that may end a path is not told."""
    for route in server.app.router.routes():
        assert route.resource
        path = route.resource.canonical.replace("{slash}", "")
        yield route.method.lower(), path.replace("{name}", "")
        if path.endswith("{name}"):
            yield route.method.lower(), path.replace("{name}", "/{name}")


async def test_the_document_and_the_routes_are_the_same(server: TestServer) -> None:
    """Every route is described, and nothing else is."""
    described = {(method, path) for path, taken in DOCUMENT["paths"].items() for method in taken}
    assert described == set(real_routes(server))


async def test_the_document_is_served_to_readers(reader: Reader) -> None:
    """As JSON, with a token like all else."""
    assert await reader.json("/api/v1/openapi.json") == DOCUMENT
    reader.headers = {}
    assert await reader.status("/api/v1/openapi.json") == 401


def operations() -> list[dict[str, Any]]:
    return [described for taken in DOCUMENT["paths"].values() for described in taken.values()]


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    found = DOCUMENT
    for key in part["$ref"].removeprefix("#/").split("/") if "$ref" in part else ():
        found = found[key]
    return found if "$ref" in part else part


def test_the_document_is_openapi() -> None:
    """Schemas are schemas, references lead somewhere, examples are valid, and names are unique."""
    names = [described["operationId"] for described in operations()]
    assert len(names) == len(set(names))
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "components": DOCUMENT["components"]})
    for described in operations():
        for parameter in map(resolved, described.get("parameters", [])):
            if "example" in parameter:
                whole = {**parameter["schema"], "components": DOCUMENT["components"]}
                jsonschema_rs.validate(whole, parameter["example"])
        for answer in map(resolved, described["responses"].values()):
            assert answer["description"]


def test_the_document_speaks_the_archives_words() -> None:
    """The states, roles and kinds are those of the code."""
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["State"]["enum"] == list(State)
    assert schemas["Role"]["enum"] == list(Role)
    assert schemas["Kind"]["enum"] == list(KINDS)
    assert schemas["Scope"]["enum"] == list(Scope)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/v1/media/example.com/SomeMediaId/content", {}, 200),
        ("/api/v1/media/example.com/SomeMediaId/content", {"Range": "bytes=1-2"}, 206),
        ("/api/v1/media/example.com/SomeMediaId/content", {"Range": "bytes=999-"}, 416),
        ("/api/v1/media/example.com/SomeMediaId/content", {"If_None_Match": "*"}, 304),
        ("/api/v1/media/example.com/!/content", {}, 400),
        ("/api/v1/media/example.com/SomeMediaId/content", {"Authorization": "Bearer x"}, 401),
        ("/api/v1/media/example.com/unheard-of/content", {}, 404),
        ("/api/v1/media/example.com/later/content", {}, 504),
        ("/api/v1/rooms/!abc:example.com/avatar", {}, 200),
        ("/api/v1/users/@al:example.com/avatar", {}, 200),
        ("/api/v1/media", {}, 200),
        ("/api/v1/media?limit=0", {}, 400),
        ("/api/v1/media/example.com/SomeMediaId", {}, 200),
        ("/api/v1/events/$abc", {}, 200),
        ("/api/v1/polls", {}, 200),
        ("/api/v1/polls/$poll", {}, 200),
        ("/api/v1/rooms/!abc:example.com", {}, 200),
        ("/api/v1/users/@al:example.com", {}, 200),
        ("/api/v1/reads", {}, 403),
        ("/api/v1/stats", {}, 200),
        ("/api/v1/stats/room", {}, 200),
        ("/api/v1/stats/planet", {}, 404),
        ("/readyz", {}, 200),
        ("/metrics", {}, 200),
    ],
)
async def test_the_answers_that_are_told_are_given(
    filled: Archive, reader: Reader, path: str, headers: dict[str, str], status: int
) -> None:
    """One way to each."""
    await filled.pool.execute(
        "INSERT INTO media (server_name, media_id, state, due_at)"
        " VALUES ('example.com', 'later', 'pending', now())"
    )
    assert await reader.status(path, **headers) == status


@pytest.mark.parametrize("scope", list(Scope))
async def test_no_request_finds_an_answer_that_is_not_told(
    filled: Archive, server: TestServer, scope: Scope
) -> None:
    """schemathesis asks every operation, rightly and wrongly: no 5xx, nothing undocumented."""
    secret = await filled.token("schemathesis", scope)
    asked, failures = await asyncio.to_thread(ask_all, str(server.make_url("/")), secret)
    assert failures == []
    assert asked >= {name["operationId"] for name in operations()}


def ask_all(url: str, secret: str) -> tuple[set[str], list[str]]:
    """The operations that were asked, and what was wrong with their answers."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "headers": {"Authorization": f"Bearer {secret}"},
            "generation": {
                "deterministic": True,
                "max-examples": EXAMPLES,
                "database": "none",
                "with-security-parameters": False,
            },
            "phases": {"stateful": {"enabled": False}},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
        }
    )
    schema = schemathesis.openapi.from_dict(openapi.document(), config=config)
    schema.config.update(base_url=url)
    asked, failures = set(), []
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            for case_id, checks in event.recorder.checks.items():
                case = event.recorder.cases[case_id].value
                asked.add(case.operation.definition.raw["operationId"])
                failures += [
                    f"{case.method} {case.formatted_path} {case.query}: {check.failure_info}"
                    for check in checks
                    if check.failure_info
                ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(str(event.info if hasattr(event, "info") else event.exception))
    return asked, failures
