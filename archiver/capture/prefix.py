"""What makes words a command to our bot. Whoever hears it and whoever leaves it out agree here."""

from __future__ import annotations


def begins_command(body: str, prefix: str) -> bool:
    """True when the first word is the prefix, whatever its case; `prefix` comes casefolded."""
    body = body.lstrip()
    if not prefix.startswith(body[:1].casefold()):  # nearly every text ends here
        return False
    # Casefolding makes nothing shorter, so in so many characters the prefix ends or is none.
    words = body[: len(prefix) + 1].split(maxsplit=1)
    return bool(words) and words[0].casefold() == prefix
