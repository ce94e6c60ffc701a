"""The producer process of case f: it emits a load as fast as it can, then ends.

Usage: python -m benchmarks.emitter URL EVENTS
"""

import sys

from tallystream import Producer

from .load import METRIC, zipf


def main() -> None:
    """Prepare the load, print "ready", wait for a line on standard input, then emit and flush the load."""
    url, n = sys.argv[1], int(sys.argv[2])
    subjects = zipf(n)
    with Producer(url) as producer:
        print("ready", flush=True)
        sys.stdin.readline()
        for subject in subjects:
            producer.emit(METRIC, subject)
        producer.flush(timeout=120)


if __name__ == "__main__":
    main()
