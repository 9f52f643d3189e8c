"""What the bot may tell the control room by itself."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal[
    "trouble", "disk", "failed", "gaps", "damage", "custody", "infected", "scan"
]  # fmt: skip
EVERY: tuple[Kind, ...] = get_args(Kind)
