"""95 % intervals of metrics from a Bayesian bootstrap of images or of groups of images.

A resample gives each unit, an image or a group of images, a random weight from the exponential distribution (Rubin, The
Bayesian Bootstrap, Annals of Statistics 1981). Unlike counts of draws, no weight is 0, so that every resample holds
every class, and measures what the sample does. The spread of the resamples becomes an interval around the value with a
quantile of Student's t, on the log-odds of a metric between 0 and 1 and the logarithm of an error without an upper end,
so that it ends where the metric does. `benchmarks/coverage.py` compares it with percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student_t

from tlkeras.plotting.notebook import render_table
from tlkeras.results import HIDDEN, Result, make_frame

if TYPE_CHECKING:
    import pandas

FEWEST_UNITS = 5
"""Of fewer images or groups, or of fewer of one class, no interval is given: it would not hold what it promises."""

FEWEST_FOR_LOSSES = 20
"""The same for losses and errors without an upper end: few images seldom hold the large ones."""

_CELLS = 4_000_000  # weights held in memory at a time
_MOST_LOST = 1 / FEWEST_UNITS
_NOTHING = 1e-12
_TAIL = 0.025
_ON_LOGARITHMS = ("log_loss", "brier_score", "rmse", "mae")
_LOSSES = ("log_loss", "r2", "rmse", "mae")
_PROPORTIONS = ("accuracy", "exact_match")


@dataclass(frozen=True)
class Estimate(Result):
    """A value and its 95 % interval, each NaN where it is undefined; `reason` says why an interval is left out.

    `n` is the number of images that it was measured on, 0 where that is not known. `float(estimate)` is the value.
    """

    value: float
    low: float
    high: float
    reason: str = ""
    n: int = field(default=0, compare=False, kw_only=True, metadata=HIDDEN)

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        interval = self.reason if np.isnan(self.low) else f"{self.low:.4g} to {self.high:.4g}"
        parts = [f"{self.value:.4g}", interval, f"n={self.n:,}" if self.n else ""]
        return f"{type(self).__name__}({', '.join(filter(None, parts))})"

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name; None for NaN, which JSON does not have; `reason` only where there is one."""
        shown = {name: value for name, value in vars(self).items() if name != "n" and (name != "reason" or value)}
        return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in shown.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """An estimate from what `to_dict` gave."""
        plain: dict[str, Any] = {name: np.nan if value is None else value for name, value in values.items()}
        return cls(**plain)


class Metrics(dict[str, Estimate]):
    """Metrics by name."""

    def to_frame(self) -> pandas.DataFrame:
        """A row per metric with `value`, `low`, `high` and `reason`; MissingExtraError without pandas."""
        names = ("value", "low", "high", "reason")
        return make_frame([{name: getattr(of, name) for name in names} for of in self.values()], self)

    def _repr_html_(self) -> str:
        rows = [(name.replace("_", " "), of.value, of.low, of.high) for name, of in self.items()]
        return render_table(("metric", "value", "low", "high"), rows)


@dataclass(frozen=True)
class Units:
    """What is resampled as a whole."""

    codes: np.ndarray  # the unit of each image, int [n]
    count: int  # units with weight
    effective: float  # the number of equal units whose mean varies as much (Kish, Survey Sampling, 1965, section 8.2)
    noun: str  # "images", or "groups" where images of one group stay together


class Support(NamedTuple):
    """What a metric's interval rests on: degrees of freedom, and the reason why there can be none, or ""."""

    degrees: float
    reason: str


def find_units(weights: np.ndarray, groups: np.ndarray | None) -> Units:
    """Units of images, from the weight of each, float [n], and its group, str [n]; one without, "", is its own unit."""
    codes, noun = np.arange(len(weights)), "images"
    if groups is not None and (groups != "").any():
        named, codes = np.unique(groups, return_inverse=True)
        alone = np.flatnonzero(groups == "")
        codes[alone] = len(named) + np.arange(len(alone))
        used, codes = np.unique(codes, return_inverse=True)
        noun = "images" if len(used) == len(weights) else "groups"
    totals = np.bincount(codes, weights)
    return Units(codes, int((totals > 0).sum()), float(totals.sum() ** 2 / np.square(totals).sum()), noun)


def draw_weights(units: Units, resamples: int, seed: int, cells: int) -> Iterator[np.ndarray]:
    """Weight of each image in each resample, in stacks (b, n) that bound the memory: `cells` are needed for each.

    Images of a unit have one weight. The same seed and units give the same resamples: two models are comparable.
    """
    random = np.random.default_rng(seed)
    step, drawn_units = max(1, _CELLS // max(cells, 1)), int(units.codes.max()) + 1
    for start in range(0, resamples, step):
        drawn = random.standard_exponential((min(step, resamples - start), drawn_units))
        yield drawn if units.noun == "images" else drawn[:, units.codes]


def support_all(units: Units, metric: str = "") -> Support:
    """Support of a metric of all images."""
    fewest = FEWEST_FOR_LOSSES if metric in _LOSSES else FEWEST_UNITS
    if units.count < 2:
        only = "one image" if units.noun == "images" else "one group"
        return Support(0.0, f"there is only {only}, which cannot be resampled")
    if units.count < fewest:
        return Support(0.0, f"{units.count} {units.noun} are too few to be resampled")
    if units.effective < FEWEST_UNITS - _NOTHING:
        return Support(0.0, f"{units.count} {units.noun} of unequal weight count as only {units.effective:.1f}")
    return Support(units.effective - 1, "")


def support_classes(units: Units, counts: np.ndarray) -> Support:
    """Support of a metric that joins classes, with the number of equal units that each rests on, float [k].

    Resamples of m units of a class understate its variance by 1 / m, which is averaged here as if all classes varied
    alike; more than a fifth is too much. Degrees of freedom: Satterthwaite, Biometrics Bulletin 1946.
    """
    whole = support_all(units)
    counts = counts[counts > 0]
    if whole.reason or not len(counts):
        return whole
    if (counts**-2).sum() / (counts**-1).sum() > _MOST_LOST + _NOTHING:
        few = int((counts < FEWEST_UNITS - _NOTHING).sum())
        which = f"{few} of {len(counts)} classes rest" if len(counts) > 1 else "the class rests"
        return Support(0.0, f"{which} on fewer than {FEWEST_UNITS} {units.noun}")
    degrees = (counts**-1).sum() ** 2 / (counts**-2 / np.maximum(counts - 1, 0.5)).sum()
    return Support(min(whole.degrees, float(degrees)), "")


def count_units(units: Units, weights: np.ndarray) -> np.ndarray:
    """Number of equal units that each class rests on, float [k], from the weight of each image in it, float [n, k]."""
    if units.noun == "groups":
        totals = np.zeros((int(units.codes.max()) + 1, weights.shape[1]))
        np.add.at(totals, units.codes, weights)
        weights = totals
    return np.square(weights.sum(axis=0)) / np.maximum(np.square(weights).sum(axis=0), 1e-300)


def make_interval(metric: str, value: float, resampled: np.ndarray, support: Support, units: Units) -> Estimate:
    """A value on all images with its interval from that on each resample, float (b,), or why there is none.

    The metric's name tells the scale.
    """
    spread, reason = _measure_spread(value, resampled, support)
    if reason:
        return Estimate(value, np.nan, np.nan, reason)
    if spread <= _NOTHING * max(1.0, abs(value)):
        return _bound_proportion(metric, value, units)
    reach = float(student_t.ppf(1 - _TAIL, support.degrees)) * spread
    if metric == "r2":
        left = 1 - value
        return Estimate(value, float(1 - left * np.exp(reach / left)), float(1 - left * np.exp(-reach / left)))
    if metric in _ON_LOGARITHMS:
        factor = np.exp(reach / value)
        return Estimate(value, float(value / factor), float(value * factor))
    if not 0 < value < 1:
        return Estimate(value, np.nan, np.nan, "the value is at its limit")
    middle, reach = logit(value), reach / (value * (1 - value))
    return Estimate(value, float(min(expit(middle - reach), value)), float(max(expit(middle + reach), value)))


def make_difference(metric: str, value: float, resampled: np.ndarray, support: Support, units: Units) -> Estimate:
    """A difference of a metric between two models, with its interval; arguments as in `make_interval`."""
    spread, reason = _measure_spread(value, resampled, support)
    if not reason and spread <= _NOTHING * max(1.0, abs(value)):
        if metric in _PROPORTIONS and abs(value) > 1 - _NOTHING:  # each image is for the same model
            least = 2 * _TAIL ** (1 / units.effective) - 1
            return Estimate(value, *((least, value) if value > 0 else (value, -least)))
        reason = "the difference is the same in all resamples"
    if reason:
        return Estimate(value, np.nan, np.nan, reason)
    reach = float(student_t.ppf(1 - _TAIL, support.degrees)) * spread
    limit = np.inf if metric in (*_ON_LOGARITHMS, "r2") else 1.0
    return Estimate(value, max(value - reach, -limit), min(value + reach, limit))


def support_bins(units: Units, bins: int) -> Support:
    """Support of a sum of gaps in bins of equal weight."""
    whole = support_all(units)
    if not whole.reason and len(units.codes) < 2 * bins:
        return Support(0.0, f"{len(units.codes)} images are too few for {bins} bins")
    return whole


def make_folded_interval(gaps: np.ndarray, resampled: np.ndarray, support: Support) -> Estimate:
    """The sum of the absolute gaps with its interval, which is that of all truths that would give such a sum.

    Noise adds to absolute values, so that percentiles of resamples lie above a small truth. The lower end is the truth
    s |gaps|, 0 <= s <= 1, whose sum with noise is as large as that observed in 2.5 % of the resamples (a test inverted:
    Carpenter, Statistics in Medicine 1999). The upper end has a quantile of Student's t. Gaps are of each bin, times
    its share of the weight, float [k], and on each resample, float [b, k].
    """
    value = float(np.abs(gaps).sum())
    sums = np.abs(resampled).sum(axis=1)
    spread, reason = _measure_spread(value, sums, support)
    if not reason and spread <= _NOTHING:
        reason = "it is the same in all resamples"
    if reason:
        return Estimate(value, np.nan, np.nan, reason)
    quantile = float(student_t.ppf(1 - _TAIL, support.degrees))
    stretch = _correct_spread(support) * quantile / student_t.ppf(1 - _TAIL, np.inf)
    noise = (resampled - gaps) * stretch
    shares = (s for s in np.linspace(0, 1, 51) if (np.abs(s * gaps + noise).sum(axis=1) >= value).mean() > _TAIL)
    low = float(next(shares, 0.0) * value)
    bias = max(float(sums.mean()) - value, 0.0)
    return Estimate(value, min(low, value), min(max(value - bias / 2, 0.0) + quantile * spread, 1.0))


def _measure_spread(value: float, resampled: np.ndarray, support: Support) -> tuple[float, str]:
    """Standard error of a value, as n - 1 has it in that of a mean, or the reason why there is none."""
    if not np.isfinite(value):
        return np.nan, "it is not defined for these images"
    if support.reason:
        return np.nan, support.reason
    if not len(resampled):
        return np.nan, "no resamples were drawn"
    if not np.isfinite(resampled).all():
        return np.nan, "it is not defined in some resamples"
    return float(resampled.std()) * _correct_spread(support), ""


def _correct_spread(support: Support) -> float:
    """From the spread of exponential weights to the standard error that has n - 1 below the sum of squares."""
    return float(np.sqrt((support.degrees + 2) / support.degrees))


def _bound_proportion(metric: str, value: float, units: Units) -> Estimate:
    """A value that no resample changes: Clopper and Pearson's limit, Biometrika 1934, if it is all or nothing."""
    limit = _TAIL ** (1 / units.effective)
    if metric in _PROPORTIONS and value > 1 - _NOTHING:
        return Estimate(value, limit, value)
    if metric in _PROPORTIONS and value < _NOTHING:
        return Estimate(value, value, 1 - limit)
    return Estimate(value, np.nan, np.nan, "it is the same in all resamples")
