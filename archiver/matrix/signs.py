"""The signs that the bot and people put under messages."""

OK = "\u2705"
CANCEL = "\u274c"
