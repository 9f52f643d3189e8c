"""How fast the archive is, side by side with Synapse, nginx and bare loops: `make bench`."""
