"""What sections of `config.yaml` have in common."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file: unknown keys are refused, nothing changes after start."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


def user_id(value: str) -> str:
    """Itself. Raises ValueError for what is no user id."""
    if not re.fullmatch(r"@[^\s:]+:\S+", value):
        raise ValueError("is no user id like @name:example.com")
    return value
