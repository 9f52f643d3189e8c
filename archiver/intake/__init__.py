"""Door one: the homeserver pushes transactions here."""
