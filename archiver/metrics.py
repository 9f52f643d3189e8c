"""What a dashboard shows. One place, so that names and labels stay of one kind."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PUSHES = Counter("archiver_pushes_total", "Transactions from the homeserver", ["outcome"])
PUSH_SECONDS = Histogram(
    "archiver_push_seconds",
    "From a transaction's last byte to its acknowledgement",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
)
EVENTS = Counter("archiver_events_total", "Events newly recorded", ["source"])
REFERENCES = Counter("archiver_references_total", "References newly recorded", ["source"])
MEDIA_QUEUED = Counter("archiver_media_queued_total", "Media newly queued", ["source"])

MEDIA_SETTLED = Counter("archiver_media_settled_total", "Media that reached a state", ["state"])
MEDIA_DEDUPLICATED = Counter(
    "archiver_media_deduplicated_total", "Media whose bytes were already kept"
)
BYTES_ARCHIVED = Counter("archiver_archived_bytes_total", "Bytes newly stored", ["place"])
ARCHIVE_SECONDS = Histogram(
    "archiver_archive_seconds",
    "From claim to commit of one media",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120),
)
ARCHIVE_ERRORS = Counter(
    "archiver_archive_errors_total", "Tries that did not end with bytes", ["error"]
)
CLAIMED = Gauge("archiver_claimed", "Media this process holds a lease on")

HISTORY_EVENTS = Counter("archiver_history_events_total", "Events read from history", ["source"])
GAP_EVENTS = Counter(
    "archiver_gap_events_total", "Events that were never pushed, found by comparing and kept"
)
ROOM_VISITS = Counter("archiver_room_visits_total", "Rooms compared with history", ["outcome"])
ROOM_SECONDS = Histogram(
    "archiver_room_seconds",
    "What the homeserver took to answer one comparison",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
REDACTIONS = Counter("archiver_redactions_total", "Redactions whose effect was worked out")

RENDERS = Counter("archiver_renders_total", "Pictures asked of helpers", ["work", "outcome"])
RENDER_SECONDS = Histogram(
    "archiver_render_seconds",
    "What a helper took for one picture",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 20),
)

VARIANTS_KEPT = Counter("archiver_variants_kept_total", "Thumbnails and variants newly kept")

REQUESTS = Counter("archiver_requests_total", "Requests served", ["route", "status"])
DAMAGED = Counter("archiver_damaged_total", "Reads that found bytes missing in a store")
BYTES_SERVED = Counter("archiver_served_bytes_total", "Bytes of media served", ["place"])

# Counted from time to time, because whole tables are read for them.
COVERED = Gauge("archiver_covered_references", "References by the state of their media", ["state"])
ENCRYPTED = Gauge("archiver_encrypted_events", "Events that cannot be opened")
EMPTIED = Gauge(
    "archiver_emptied_events",
    "Events that came emptied by a redaction, by what became of the original",
    ["original"],
)
ROOMS = Gauge("archiver_rooms", "Rooms by what is known of their history", ["history"])
ROOMS_OPEN = Gauge("archiver_rooms_with_open_gaps", "Rooms whose newest history may have gaps")
PROCESSING = Gauge(
    "archiver_processing_blobs",
    "Blobs that wait for their thumbnails, or got none",
    ["processing"],
)

MEDIA = Gauge("archiver_media", "Media that wait or did not end well, by state", ["state"])
OLDEST_DUE = Gauge("archiver_oldest_due_seconds", "How long the most overdue media has waited")
