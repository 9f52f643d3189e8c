"""The command line: `archiver …`."""

from archiver.cli.main import main

__all__ = ["main"]
