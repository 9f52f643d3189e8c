"""A homeserver forgets, the archive does not: `make demo`."""
