"""Door two: what the homeserver has and never pushed, from before us or lost on the way."""
