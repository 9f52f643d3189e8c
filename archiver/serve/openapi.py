"""`GET /api/v1/openapi.json`: the readers' door described, and tested to be so.

A new route goes into `openapi.yaml` under its path, without `{slash}`; one that ends in `{name}`
goes in twice, without and with `/{name}`. Take over what its neighbours have: the errors of a
list are `<<: *list_errors`, of one thing `<<: *one_errors`, of bytes `*bytes`; `security` with
`signature` is for what a signed URL may open. HEAD is made here of every GET. Tests hold that
every route is there and every path is real, and ask all of them by schemathesis.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from aiohttp import web

from archiver.serve.answers import reply


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    text = files("archiver.serve").joinpath("openapi.yaml").read_text("utf-8")
    described: dict[str, Any] = yaml.safe_load(text)
    for path in described["paths"].values():
        if get := path.get("get"):
            path["head"] = {
                **get,
                "operationId": f"{get['operationId']}Head",
                "summary": "The headers alone",
                "responses": {
                    status: {"description": "As of GET, without a body"}
                    for status in get["responses"]
                },
            }
    return described


async def get(_request: web.Request) -> web.Response:
    """The document as JSON."""
    return reply(document())
