"""The archive, or a part of it, as files that need no archive: a BagIt bag, out and in again."""
