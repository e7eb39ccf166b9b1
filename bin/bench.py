"""`drain`: the relay against raw `_bulk`, alternately in one run. `write`: what a row costs the writer. `reindex`: how
fast an index is rebuilt, and what live rows notice of it. `idle`, `latency`: what a relay takes while little happens,
and how long a row takes that comes alone. `peers`: the same beside other software. `growth`: whether it gets slower.
`scale`: what more relays add on PostgreSQL. `writers`: what many writers notice of one there. `figures`: what it takes
to look at millions of rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import bench_drain
import bench_figures
import bench_growth
import bench_live
import bench_peers
import bench_reindex
import bench_scale
import bench_write
import bench_writers
import click
from bench_report import as_json, report


@click.group()
def main() -> None:
    """Measure on this machine. Figures are ratios of what was measured alternately in one run."""


@main.command()
@click.option("--rows", default=5_000_000, show_default=True, help="Finished rows.")
@click.option("--keep", type=click.Path(path_type=Path), help="File to make them in, or to use again.")
@as_json
def figures(rows: int, keep: Path | None, as_json: bool) -> None:
    """How long what operators look at takes when millions of rows are finished and not yet pruned."""
    with tempfile.TemporaryDirectory() as directory:
        path = keep or Path(directory) / "app.db"
        if not path.exists():
            began = time.perf_counter()
            bench_figures.fill(path, rows)
            took, size = time.perf_counter() - began, path.stat().st_size / 1e6
            click.echo(f"{rows:,} rows made in {took:.0f} s, {size:,.0f} MB", err=True)  # beside the JSON
        found = [
            {"what": what, "first, ms": first, "further, ms": further}
            for what, first, further in bench_figures.measure(path)
        ]
    report(f"{rows:,} finished rows", found, as_json=as_json)


main.add_command(bench_drain.drain)
main.add_command(bench_growth.growth)
main.add_command(bench_live.idle)
main.add_command(bench_live.latency)
main.add_command(bench_peers.peers)
main.add_command(bench_reindex.reindex)
main.add_command(bench_scale.scale)
main.add_command(bench_write.write)
main.add_command(bench_writers.writers)

if __name__ == "__main__":
    main()
