"""Whether the first calls after a start are as fast as later ones, one caller and one photo a call.

    .venv/bin/python benchmarks/first_calls.py MODELS NAME PHOTOS [--starts 5]

Each start is a new server; the connection is made before the first call.
"""

import sys
import time

import numpy as np
from limit import parser_of, read_photos
from started import started

from serving.client import Client

_FIRST, _CALLS = 100, 500


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    photos = read_photos(options.photos, _CALLS)
    for _ in range(options.starts):
        times = []
        with started(options.models) as server, Client(server.address) as client:
            client.list_models()
            for photo in photos:
                begun = time.perf_counter()
                client.classify([photo], model=options.name)
                times.append(1e3 * (time.perf_counter() - begun))
        (p50, p99), (later50, later99) = (
            np.percentile(part, (50, 99)) for part in (times[:_FIRST], times[_FIRST:])
        )
        print(
            f"first {times[0]:.1f} ms; the first {_FIRST}: p50 {p50:.1f}, p99 {p99:.1f} ms; "
            f"later: p50 {later50:.1f}, p99 {later99:.1f} ms",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
