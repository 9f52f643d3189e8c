"""Where blobs rest: the promise every store keeps, the stores, and the threshold between them.

A store knows bytes by their SHA-256 and nothing else: no rooms, no events, no media.
"""
