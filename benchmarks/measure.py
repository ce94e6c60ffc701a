"""The figures of a case: samples with units, their summary over all repeats, and readings of processor and memory."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

RATE = "events_per_second"


class Skipped(Exception):  # an outcome with a reason, not a failure
    """A case cannot run on this machine; the message names the missing program or feature."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one repeat of a case, by name; each name ends in its unit."""

    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """The median, lowest and highest value of a figure over all repeats, and all values."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Half the difference of the highest and the lowest value, as a fraction of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def summarize(samples: Sequence[Sample]) -> dict[str, Summary]:
    """Return a summary of each figure that every repeat of a case has."""
    names = [name for name in samples[0].figures if all(name in sample.figures for sample in samples)]
    columns = {name: tuple(sample.figures[name] for sample in samples) for name in names}
    return {
        name: Summary(statistics.median(values), min(values), max(values), values) for name, values in columns.items()
    }


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the value below which `fraction` of an ascending sequence lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def server_cpu_seconds(client: redis.Redis) -> float:
    """Return the processor time, user and system, that the server has used since it started."""
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def script_milliseconds(client: redis.Redis) -> dict[str, float]:
    """Return the median and p99 of the time that the server measured for a script call since CONFIG RESETSTAT.

    The dictionary is empty if no script was called.
    """
    latency = client.info("latencystats")
    spent = client.info("commandstats")
    calls = {name: spent[f"cmdstat_{name}"]["calls"] for name in ("evalsha", "fcall") if f"cmdstat_{name}" in spent}
    if not calls:
        return {}
    percentiles = latency[f"latency_percentiles_usec_{max(calls, key=lambda name: calls[name])}"]
    return {
        "apply_p50_ms": float(percentiles["p50"]) / 1000,
        "apply_p99_ms": float(percentiles["p99"]) / 1000,
    }


def peak_memory_mib(pid: int) -> float | None:
    """Return the highest resident size of a running process in MiB, or `None` if /proc does not have it.

    `ru_maxrss` would be wrong: it starts at the size of the process that forked.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024 if "VmHWM" in lines else None
