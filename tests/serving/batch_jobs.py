"""The plan of a batch job over photos, and what lies in its answers."""

from pathlib import Path

import pyarrow.parquet as parquet

from serving.batch_plan import Plan, digest_of
from serving.places import Place


def plan_of(source: Place, **changes) -> Plan:
    photos = source.photos()
    settings = {"photos": source.location, "model": "pets", "asked": ""}
    settings |= {"version": 1, "top_k": 2, "part_photos": 4, "familiarity": True} | changes
    return Plan(count=len(photos), digest=digest_of(photos), **settings)


def rows_of(out: Path) -> list[dict]:
    files = sorted(out.glob("part-*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]
