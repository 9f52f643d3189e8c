"""The scanner that the configuration chooses."""

from __future__ import annotations

from archiver.config.scan import Scan
from archiver.scan.base import Scanner
from archiver.scan.clamd import Clamd
from archiver.scan.command import Command


def scanner(rules: Scan) -> Scanner | None:
    """None where nothing is to be scanned."""
    if rules.with_ == "clamd":
        return Clamd(rules.clamd, rules.timeout)
    if rules.with_ == "command":
        return Command(rules.command, rules.timeout)
    return None
