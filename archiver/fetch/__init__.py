"""The queue's worker: claims media, fetches each once, and sees it durable."""
