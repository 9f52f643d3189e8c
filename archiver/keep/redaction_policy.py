"""`capture.on_redaction`: what is done about redactions beside marking them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from archiver.keep.deletion import Deletion
from archiver.keep.originals import Originals

if TYPE_CHECKING:
    from archiver.capture.policy import CapturePolicy
    from archiver.db.pool import Pool
    from archiver.matrix.history import History
    from archiver.store.hybrid import HybridStore


def followers(
    pool: Pool,
    store: HybridStore,
    history: History,
    policy: CapturePolicy,
    on_redaction: Literal["keep", "hide", "delete"],
    delete_after: timedelta,
) -> list[Deletion | Originals]:
    """What is to run: something always deletes (what another policy left half done, at least);
    `keep` asks for what came emptied."""
    deletion = Deletion(pool, store, delete_after if on_redaction == "delete" else None)
    if on_redaction != "keep":
        return [deletion]
    return [deletion, Originals(pool, history, policy)]
