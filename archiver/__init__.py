"""Matrix Media Archiver: keeps the media of Matrix rooms after the homeserver forgot it."""

__version__ = "0.1.0"
