"""What the cases count: seeded lists of subjects, the same in every run."""

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
    """Draw `n` subjects by Zipf's law: of 100,000 articles, the k-th is drawn in proportion to k^-1.05."""
    weights = np.arange(1, ZIPF_SUBJECTS + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    cumulative = np.cumsum(weights)
    draws = np.random.default_rng(_SEED).random(n) * cumulative[-1]
    return _named(np.searchsorted(cumulative, draws), ZIPF_SUBJECTS)


@cache
def hot(n: int) -> list[str]:
    """Return the same subject `n` times: everybody looks at one article."""
    return ["article:1"] * n


@cache
def uniform(n: int) -> list[str]:
    """Draw `n` subjects evenly from 1,000,000: the worst case for a fold, as hardly any subject repeats."""
    return _named(np.random.default_rng(_SEED).integers(0, UNIFORM_SUBJECTS, n), UNIFORM_SUBJECTS)


LOADS: dict[str, Callable[[int], list[str]]] = {"zipf": zipf, "hot": hot, "uniform": uniform}


def _named(ranks: NDArray[np.integer], subjects: int) -> list[str]:
    """Turn ranks into subjects that share one string per rank, as an app's own identifiers would."""
    names = [f"article:{rank}" for rank in range(1, subjects + 1)]
    return [names[rank] for rank in ranks.tolist()]
