"""What the bot watches, and the words in which it tells of it."""
