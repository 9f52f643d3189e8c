"""`make bench`: measures, shows, and writes bench/RESULTS.md.

    make bench                        everything, in about forty minutes
    make bench BENCH='intake serve'   some parts

Give it a machine that does nothing else. What a part found is written when it is done.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from bench import archive, history, intake, machine, memory, report, rows, serve, slow, upkeep
from bench.figures import Section
from bench.ground import Ground
from tests.support.process import running

RESULTS = Path(__file__).with_name("RESULTS.md")
PARTS: dict[str, Callable[[Ground], Section]] = {
    "intake": intake.measure,
    "archive": archive.measure,
    "serve": serve.measure,
    "slow": slow.measure,
    "rows": rows.measure,
    "memory": memory.measure,
    "history": history.measure,
    "upkeep": upkeep.measure,
}
ORDER = (
    "Intake", "Archiving", "Serving", "Slow readers", "Many rows", "Memory", "History", "Upkeep",
)  # fmt: skip


def main(parts: list[str], results: Path) -> None:
    """Measures the named parts one after the other, each on ground of its own."""
    busy = machine.busy()
    print(f"load average before it begins: {busy:.1f}")
    for name in parts:
        print(name, flush=True)
        started = time.monotonic()
        with ExitStack() as stack:
            section = PARTS[name](Ground(stack))
        took = time.monotonic() - started
        print(f"\n{report.table(section.rows)}\n\n{name} took {took:.0f} s\n", flush=True)
        report.write(results, [section], busy, ORDER)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part}: choose from {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(arguments.parts or list(PARTS), arguments.results)
    except KeyboardInterrupt:
        print("interrupted")
        raise SystemExit(130) from None
    finally:
        for server in running():
            server.kill()
