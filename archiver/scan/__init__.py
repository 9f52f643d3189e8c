"""Scanners: what tells whether bytes are infected."""
