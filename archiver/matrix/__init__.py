"""The homeserver's side: our registration with it, and the bot that we act as."""
