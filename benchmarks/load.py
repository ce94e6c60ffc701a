"""The loads that the cases count: lists of subjects from a fixed seed, the same in every run."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

METRIC = "view"
ZIPF_EXPONENT = 1.05
ZIPF_SUBJECTS = 100_000
UNIFORM_SUBJECTS = 1_000_000
_SEED = 20_240_115


@cache
def zipf(n: int) -> list[str]:
    """Return `n` subjects drawn by Zipf's law from 100,000: the k-th has a probability in proportion to k^-1.05."""
    weights = np.arange(1, ZIPF_SUBJECTS + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    cumulative = np.cumsum(weights)
    draws = np.random.default_rng(_SEED).random(n) * cumulative[-1]
    return _named(np.searchsorted(cumulative, draws), ZIPF_SUBJECTS)


@cache
def hot(n: int) -> list[str]:
    """Return the same subject `n` times."""
    return ["article:1"] * n


@cache
def uniform(n: int) -> list[str]:
    """Return `n` subjects drawn evenly from 1,000,000: the worst case for a fold, as hardly any subject repeats."""
    return _named(np.random.default_rng(_SEED).integers(0, UNIFORM_SUBJECTS, n), UNIFORM_SUBJECTS)


LOADS: dict[str, Callable[[int], list[str]]] = {"zipf": zipf, "hot": hot, "uniform": uniform}


def _named(ranks: NDArray[np.integer], subjects: int) -> list[str]:
    """Return the subject of each rank; equal ranks share one string object, as in an app that keeps its identifiers."""
    names = [f"article:{rank}" for rank in range(1, subjects + 1)]
    return [names[rank] for rank in ranks.tolist()]
