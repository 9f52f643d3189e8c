"""`config.yaml` and the environment, typed and checked once, before anything starts.

`ARCHIVER_SECTION__KEY` (and deeper: `ARCHIVER_STORAGE__S3__BUCKET`) overrides the file. Its value
is taken as it is written, because most Matrix ids and many passwords are no YAML; only `null` and
what begins with [ or { is read as YAML. Unknown keys are refused. Every mistake becomes one
sentence that names its key (`ConfigError`, exit status 2). Relative paths start at the folder of
the configuration file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from archiver.config.section import Section
from archiver.config.sections import Config
from archiver.errors import ConfigError

ENVIRONMENT_PREFIX = "ARCHIVER_"
QUOTES = "put quotes around what begins with ! @ # * & or %"

S = TypeVar("S", bound=Section)


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Reads and checks `path` and the environment. Raises ConfigError with one line a mistake."""
    values = read_yaml_mapping(path, "the configuration")
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name:
            _override(values, name, text)
    return parse_config(values, base=path.absolute().parent)


def parse_config(values: Mapping[str, Any], base: Path) -> Config:
    """The checked configuration; relative paths in it start at `base`."""
    try:
        return _anchored(Config.model_validate(values), base)
    except ValidationError as error:
        raise ConfigError("\n".join(map(_sentence, error.errors()))) from None


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError that says what the file is needed for."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {what} cannot be read ({error.strerror}); `archiver init` writes one"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {what} is no valid YAML{_place(error)}; {QUOTES}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: {what} must hold keys and values, like `homeserver:`")
    return values or {}


def _override(values: dict[str, Any], name: str, text: str) -> None:
    *sections, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
    for section in sections:
        inner = values.get(section)
        values[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        values = inner
    if text != "null" and not text.startswith(("[", "{")):
        values[key] = text
        return
    try:
        values[key] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{name}: is no valid YAML; {QUOTES}") from None


def _anchored(config: Config, base: Path) -> Config:
    storage = config.storage
    files = storage.filesystem
    return config.model_copy(
        update={
            "appservice": _with(config.appservice, registration=base),
            "database": _with(config.database, data_dir=base),
            "storage": _with(
                storage.model_copy(update={"filesystem": _with(files, path=base)}), spool=base
            ),
        }
    )


def _with(section: S, **bases: Path) -> S:
    update = {key: base / getattr(section, key) for key, base in bases.items()}
    return section.model_copy(update=update)


# pydantic's words for a wrong type, in ours.
_WRONG_TYPE = {
    "model_type": "is a section: it holds keys of its own",
    "tuple_type": "is a list: write - item lines below it, or [one, two]",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "int_parsing": "is no whole number",
    "int_type": "is no whole number",
    "int_from_float": "is no whole number",
    "invalid_key": "is no key: keys are words",
    "string_type": "is no text",
    "path_type": "is no path",
}
_SECRET = re.compile(r"secret|token|password|database\.url")


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the configuration"
    hidden = isinstance(error["input"], dict | list) or _SECRET.search(key)
    shown = "" if hidden else f" (it is {error['input']!r})"
    if error["type"] == "extra_forbidden":
        return f"{key}: there is no such key; see config.example.yaml for all of them"
    if error["type"] == "missing":
        return f"{key}: is missing"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}{shown}"
    if error["type"] == "literal_error":
        return f"{key}: is not {error['ctx']['expected']}{shown}"
    return f"{key}: {_WRONG_TYPE.get(error['type'], error['msg'].lower())}{shown}"


def _place(error: Exception) -> str:
    """Where YAML stopped to understand; its own words could show a secret."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
