"""What an event holds for the archive, read from the raw JSON and recorded in one commit."""
