"""What a dashboard shows. One place, so that names and labels stay of one kind."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# Of several processes that count together each tells what all of them counted; of what is looked
# up at times, what was found last.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
LAST: Final = "mostrecent"
SUM: Final = "livesum"
TRIES = 50
PAUSE_SECONDS = 0.01

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
CLAIMED = Gauge("archiver_claimed", "Media this process holds a lease on", multiprocess_mode=SUM)

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
BYTES_VERIFIED = Counter("archiver_verified_bytes_total", "Bytes hashed anew")
REPAIRED = Counter("archiver_repaired_blobs_total", "Damaged blobs that were mended")
SCANNED = Counter("archiver_scanned_total", "Blobs that were given to a scanner", ["outcome"])
REDACTIONS = Counter("archiver_redactions_total", "Redactions whose effect was worked out")

RETENTION = Counter("archiver_retention_total", "Media that rules of retention let go", ["rule"])
RETENTION_BYTES = Counter("archiver_retention_bytes_total", "Bytes that this freed")

RENDERS = Counter("archiver_renders_total", "Pictures asked of helpers", ["work", "outcome"])
RENDER_SECONDS = Histogram(
    "archiver_render_seconds",
    "What a helper took for one picture",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 20),
)

VARIANTS_KEPT = Counter("archiver_variants_kept_total", "Thumbnails and variants newly kept")

SERVING = Gauge(
    "archiver_serving_processes", "Processes that answer readers", multiprocess_mode=SUM
)
REQUESTS = Counter("archiver_requests_total", "Requests served", ["route", "status"])
DAMAGED = Counter("archiver_damaged_total", "Reads that found bytes missing in a store")
BYTES_SERVED = Counter("archiver_served_bytes_total", "Bytes of media served", ["place"])
READ_THROUGH = Counter(
    "archiver_read_through_total", "Requests of media that was not archived yet", ["outcome"]
)
READS = Counter(
    "archiver_reads_total",
    "Media given to readers, from memory, from a store, or missed: fetched or made for them",
    ["source"],
)
HOT_HITS = Counter("archiver_hot_hits_total", "Requests answered from memory")
HOT_MISSES = Counter("archiver_hot_misses_total", "Requests of media that were not in memory")
HOT_EVICTIONS = Counter("archiver_hot_evictions_total", "Media in memory that made room")
HOT_BYTES = Gauge("archiver_hot_bytes", "Memory taken by hot media", multiprocess_mode=SUM)
HOT_ENTRIES = Gauge("archiver_hot_entries", "Media and pictures in memory", multiprocess_mode=SUM)

# Counted from time to time, because whole tables are read for them.
COVERED = Gauge(
    "archiver_covered_references",
    "References by the state of their media",
    ["state"],
    multiprocess_mode=LAST,
)
ENCRYPTED = Gauge(
    "archiver_encrypted_events", "Events that cannot be opened", multiprocess_mode=LAST
)
EMPTIED = Gauge(
    "archiver_emptied_events",
    "Events that came emptied by a redaction, by what became of the original",
    ["original"],
    multiprocess_mode=LAST,
)
ROOMS = Gauge(
    "archiver_rooms",
    "Rooms by what is known of their history",
    ["history"],
    multiprocess_mode=LAST,
)
ROOMS_OPEN = Gauge(
    "archiver_rooms_with_open_gaps",
    "Rooms whose newest history may have gaps",
    multiprocess_mode=LAST,
)
DAMAGED_BLOBS = Gauge(
    "archiver_damaged_blobs",
    "Blobs whose bytes are known to be damaged or gone, up to 10,000",
    multiprocess_mode=LAST,
)
SCAN_WAITING = Gauge(
    "archiver_scan_waiting_blobs", "Blobs that wait for a scanner", multiprocess_mode=LAST
)
UNREPAIRED_BLOBS = Gauge(
    "archiver_unrepaired_blobs",
    "Damaged blobs that nobody could mend so far, up to 10,000",
    multiprocess_mode=LAST,
)
OLDEST_VERIFIED = Gauge(
    "archiver_oldest_verified_seconds",
    "How long ago the blob was hashed that was not for the longest time",
    multiprocess_mode=LAST,
)
KEPT_FILES = Gauge(
    "archiver_kept_files", "Files kept, each once; without thumbnails", multiprocess_mode=LAST
)
KEPT_BYTES = Gauge(
    "archiver_kept_bytes", "Bytes of files kept; without thumbnails", multiprocess_mode=LAST
)
DEDUPLICATED_BYTES = Gauge(
    "archiver_deduplicated_bytes",
    "Bytes that were not stored again, because other media had them",
    multiprocess_mode=LAST,
)
LARGEST_BYTES = Gauge(
    "archiver_largest_bytes", "Bytes of the largest file", multiprocess_mode=LAST
)
ACCESSES = Gauge(
    "archiver_accesses", "Reads so far of the media that are kept", multiprocess_mode=LAST
)
KIND_MEDIA = Gauge(
    "archiver_kind_media",
    "Media by the first half of the type that their bytes tell",
    ["kind"],
    multiprocess_mode=LAST,
)
KIND_BYTES = Gauge(
    "archiver_kind_bytes",
    "Bytes of media by the first half of the type that they tell",
    ["kind"],
    multiprocess_mode=LAST,
)
STORED_BYTES = Gauge(
    "archiver_stored_bytes",
    "Bytes by where they are stored, thumbnails among them",
    ["place"],
    multiprocess_mode=LAST,
)
GROWTH = Gauge(
    "archiver_growth_bytes_per_day", "Growth in the last 90 days", multiprocess_mode=LAST
)
FORECAST = Gauge(
    "archiver_forecast_bytes",
    "Bytes that will be kept in so many days, if it goes on like this",
    ["days"],
    multiprocess_mode=LAST,
)
COUNTED = Gauge(
    "archiver_counted_timestamp_seconds",
    "When the archive was counted last",
    multiprocess_mode=LAST,
)
PROCESSING = Gauge(
    "archiver_processing_blobs",
    "Blobs that wait for their thumbnails, or got none",
    ["processing"],
    multiprocess_mode=LAST,
)

MEDIA = Gauge(
    "archiver_media",
    "Media that wait or did not end well, by state",
    ["state"],
    multiprocess_mode=LAST,
)
OLDEST_DUE = Gauge(
    "archiver_oldest_due_seconds",
    "How long the most overdue media has waited",
    multiprocess_mode=LAST,
)


def exposition() -> bytes:
    """All of it as Prometheus reads it. Blocks where processes count together, in files."""
    if SHARED_FOLDER not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # has no types
    for _ in range(TRIES):
        with suppress(struct.error):  # a process that starts has made its file, still empty
            return generate_latest(registry)
        time.sleep(PAUSE_SECONDS)
    return generate_latest(registry)
