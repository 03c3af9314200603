"""Confidence intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

RESAMPLES = 10_000


def mean_interval(
    differences: NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float]:
    """The paired bootstrap's interval of a mean difference, by percentiles.

    Args:
        differences: ``[N]``, of two methods on the same N rows, which are drawn anew.
        confidence: of the interval.
    """
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
