"""The configuration: what it may hold, and how it is read."""

from archiver.config.reading import load_config, parse_config, read_yaml_mapping
from archiver.config.sections import Address, Config, Homeserver, Serve, Storage

__all__ = [
    "Address",
    "Config",
    "Homeserver",
    "Serve",
    "Storage",
    "load_config",
    "parse_config",
    "read_yaml_mapping",
]
