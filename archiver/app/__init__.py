"""The only place that builds the parts and wires them together."""

from archiver.app.building import capture_policy, means
from archiver.app.running import Part, run
from archiver.app.working import start_workers

__all__ = ["Part", "capture_policy", "means", "run", "start_workers"]
