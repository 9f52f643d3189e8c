"""The readers' door: media by mxc URI over HTTP, what is known of it, and how the archive does."""
