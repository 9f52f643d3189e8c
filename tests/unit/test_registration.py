"""The registration: what the homeserver and we agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from archiver.errors import ConfigError
from archiver.matrix.registration import load_registration, new_registration

EXAMPLE = Path(__file__).parents[2] / "registration.yaml.example"
SERVER = "example.com"


def written(folder: Path, values: object) -> Path:
    path = folder / "registration.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


@pytest.mark.parametrize("server_name", [SERVER, "localhost:8448", "[::1]:8448", "a-b.test"])
def test_a_new_registration_can_be_loaded(tmp_path: Path, server_name: str) -> None:
    """What `archiver init` writes is accepted, and names the bot and the sender."""
    values = new_registration("http://127.0.0.1:29340", server_name)
    registration = load_registration(written(tmp_path, values), server_name)
    assert registration.bot == f"@archiver:{server_name}"
    assert registration.bot_localpart == "archiver"
    assert registration.sender == f"@_archiver:{server_name}"
    assert (registration.as_token, registration.hs_token) == (
        values["as_token"],
        values["hs_token"],
    )


def test_every_registration_has_tokens_of_its_own() -> None:
    """Four tokens of two registrations are four, each with 256 bits."""
    made = [new_registration("http://127.0.0.1:1", SERVER) for _ in range(2)]
    tokens = {values[key] for values in made for key in ("as_token", "hs_token")}
    assert len(tokens) == 4
    assert all(len(token) >= 43 for token in tokens)


def test_the_example_is_a_registration() -> None:
    """It loads as it stands and has the keys and namespaces of a new one."""
    registration = load_registration(EXAMPLE, SERVER)
    assert registration.bot == "@archiver:example.com"
    example = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    tokens = {key: example[key] for key in ("as_token", "hs_token")}
    assert example == {**new_registration("http://127.0.0.1:29340", SERVER), **tokens}


USERS = "namespaces.users: must hold our bot alone, like @archiver:example\\.com"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"as_token": None}, "as_token: is missing or no text"),
        ({"hs_token": 5}, "hs_token: is missing or no text"),
        ({"hs_token": ""}, "hs_token: is missing or no text"),
        ({"id": ["x"]}, "id: is missing or no text"),
        ({"sender_localpart": None}, "sender_localpart: is missing or no text"),
        (
            {"sender_localpart": "archiver"},
            "sender_localpart: must differ from the bot @archiver:example.com, "
            "because Synapse refuses /sync to its sender; _archiver is a good one",
        ),
        ({"namespaces": None}, USERS),
        ({"namespaces": []}, USERS),
        ({"namespaces": {"users": None}}, USERS),
        ({"namespaces": {"users": {}}}, USERS),
        ({"namespaces": {"users": [5]}}, USERS),
        ({"namespaces": {"users": [{"regex": 5}]}}, USERS),
        ({"namespaces": {"users": [{"regex": "@.*:example\\.com"}]}}, USERS),
        ({"namespaces": {"users": [{"regex": "@archiver:other\\.com"}]}}, USERS),
        (
            {
                "namespaces": {
                    "users": [{"regex": "@archiver:example\\.com"}, {"regex": "@.*:example\\.com"}]
                }
            },
            USERS,
        ),
        (
            {"namespaces": {"users": [{"regex": "@archiver:example\\.com"}]}},
            "namespaces.rooms: is missing: without it the homeserver pushes no events; "
            'write one item, {exclusive: false, regex: "!.*"}',
        ),
    ],
)
def test_what_would_not_work_is_said(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    """Each mistake is one sentence with the file and the key, and never shows a token."""
    values = new_registration("http://127.0.0.1:29340", SERVER) | change
    path = written(tmp_path, values)
    with pytest.raises(ConfigError) as caught:
        load_registration(path, SERVER)
    assert str(caught.value) == f"{path}: {sentence}"


def test_a_missing_registration_is_said(tmp_path: Path) -> None:
    """A file that is not there is a sentence with what to do."""
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file.*archiver init"):
        load_registration(tmp_path / "none.yaml", SERVER)
