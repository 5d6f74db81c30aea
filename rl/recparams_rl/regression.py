"""Empirical-Bayes regression of a table's values on actions, contexts and personality traits.

    y ~ N(mean(eta), noise / weight),  eta = columns @ coefficients,
    coefficients ~ N(prior mean, variance of their group)

`mean` is the identity, or a logistic curve between two bounds, in units of y and with a slope of 1
at the average (a generalised linear model; McCullagh & Nelder, "Generalized Linear Models", 2nd
ed., 1989), fitted by iteratively reweighted least squares. Each group of coefficients has one
variance, which MacKay's update ("Bayesian Interpolation", Neural Computation 4, 1992) moves to
where the data are likeliest, as penalised quasi-likelihood does (Breslow & Clayton, "Approximate
Inference in Generalized Linear Mixed Models", JASA 88, 1993). A weak hyperprior keeps it where data
are few.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.basis import DISTANCE, N_DISTANCES, N_TRAIT_TERMS, ONE, Basis
from recparams_rl.compiled import Compiled

Floats = NDArray[np.float64]

_ROUNDS = 6
_SETTLED = 0.05
"""Relative change of all variances at which they need no further round."""
_REWEIGHTED_ROUNDS = 3
_LEAST_SLOPE = 0.05
_LEAST_NOISE = 1e-4
"""Below it, equations would lose to rounding what the prior says."""
_FEW_ROWS = 400
"""Rows of which products of all columns are made sooner than sums by pair."""
_DENSE = 8
"""Places of cells and pairs, a row, up to which products of whole matrices take less time."""
_PRIOR_NOISE_ROWS = 100.0
_HYPERPRIOR = 2.0
"""Weight of the prior variance of a group, in coefficients."""


@dataclass(frozen=True)
class Rows:
    """n values with their places, sorted by pair; columns of shape (n,).

    Attributes:
        cell: int32, the personality cell.
        pair: int32, context * 27 + action.
        rule: uint8, the rules' action there.
        weight: float64, above 0.
    """

    cell: NDArray[np.int32]
    pair: NDArray[np.int32]
    rule: NDArray[np.uint8]
    weight: Floats


@dataclass(frozen=True)
class Curve:
    """A logistic curve from `low` to `high`, with slope 1 at `centre`, where eta is 0."""

    low: float
    high: float
    centre: float

    def at(self, eta: Floats) -> tuple[Floats, Floats]:
        """Returns the values and the slopes at some places, of the same shape."""
        width = self.high - self.low
        share = (self.centre - self.low) / width
        steepness = 1.0 / (width * share * (1.0 - share))
        with np.errstate(over="ignore"):  # far out the curve is flat
            risen = 1.0 / (1.0 + np.exp(-(np.log(share / (1.0 - share)) + eta * steepness)))
        return self.low + width * risen, width * risen * (1.0 - risen) * steepness


@dataclass(frozen=True)
class Prior:
    """Means and standard deviations of coefficients before any data, in units of y.

    Args:
        deviation: of a coefficient of the first order.
        decay: factor on it for each further order.
        level: deviation of the overall mean.
        distance: means of the coefficients of `recparams_rl.basis.DISTANCE`, (7,).
        distance_deviation: their standard deviation.
    """

    deviation: float
    decay: float
    level: float
    distance: Floats
    distance_deviation: float

    def means(self, basis: Basis) -> Floats:
        """Returns the mean of each coefficient, (n_columns,)."""
        means = np.zeros(basis.n_columns)
        means[basis.distance] = self.distance
        return means

    def variances(self, basis: Basis) -> Floats:
        """Returns the variance of each group, (n_groups,)."""
        deviations = self.deviation * self.decay ** np.maximum(basis.order - 1.0, 0.0)
        deviations[0] = self.level
        deviations[-1] = self.distance_deviation
        return deviations**2


@dataclass(frozen=True)
class Posterior:
    """Result of a regression.

    Attributes:
        mean: of the coefficients, (n_columns,).
        factor: lower Cholesky factor of their precision, (n_columns, n_columns).
        variances: of the groups, (n_groups,).
        noise: variance of y at a weight of 1.
    """

    mean: Floats
    factor: Floats
    variances: Floats
    noise: float

    def draws(self, generator: np.random.Generator, n: int) -> Floats:
        """Returns n draws of the deviation from the mean, (n_columns, n)."""
        from scipy.linalg import solve_triangular

        normal = generator.standard_normal((len(self.mean), n))
        drawn: Floats = solve_triangular(
            self.factor, normal, trans="T", lower=True, check_finite=False
        )
        return drawn


def fit(
    basis: Basis, rows: Rows, y: Floats, traits: Floats, prior: Prior, curve: Curve | None
) -> tuple[Posterior, Floats]:
    """Fits the regression and returns what it leaves of each value, (n,), as well.

    Args:
        basis: the columns.
        rows: places and weights of the values.
        y: values, (n,), with a standard deviation of about 1.
        traits: trait terms of each cell, (n_cells, 21).
        prior: of the coefficients.
        curve: the mean as a function of eta; None for the average of y plus eta.
    """
    from scipy.linalg.lapack import dtrtri

    centre = float(np.average(y, weights=rows.weight)) if curve is None else curve.centre
    expected_noise = max(0.9 * float(np.mean(rows.weight * (y - centre) ** 2)), _LEAST_NOISE)
    start, expected = prior.means(basis), prior.variances(basis)
    group, sizes = basis.group, np.bincount(basis.group)
    variances, noise = expected, expected_noise
    problem = _linearised(basis, rows, y, traits, start, curve)
    mean, factor = _solved(problem, noise, start, variances[group])
    for number in range(1, _ROUNDS):
        # The posterior variances, which are the diagonal of the inverse of the precision.
        inverse, _ = dtrtri(factor, lower=1)
        spread = np.einsum("ij,ij->j", inverse, inverse)
        uncertain = np.bincount(group, spread) / variances
        effective = np.maximum(sizes - uncertain, 0.0)
        moved = np.bincount(group, (mean - start) ** 2)
        before = variances
        variances = (moved + _HYPERPRIOR * expected) / (effective + _HYPERPRIOR)
        noise = (problem.misfit(mean) + _PRIOR_NOISE_ROWS * expected_noise) / (
            max(len(y) - effective.sum(), 1.0) + _PRIOR_NOISE_ROWS
        )
        if number > 1 and (np.abs(variances / before - 1.0) < _SETTLED).all():
            break
        if curve is not None and number <= _REWEIGHTED_ROUNDS:
            problem = _linearised(basis, rows, y, traits, mean, curve)
        mean, factor = _solved(problem, noise, start, variances[group])
    eta = predict(basis, rows, traits, mean)
    left = y - (centre + eta if curve is None else curve.at(eta)[0])
    return Posterior(mean, factor, variances, noise), left


@dataclass(frozen=True)
class _Problem:
    """Weighted least squares: the normal equations and the sum of squares of the targets."""

    matrix: Floats
    right: Floats
    total: float

    def misfit(self, mean: Floats) -> float:
        """Returns the weighted sum of squared residuals."""
        left = self.total - 2.0 * float(mean @ self.right) + float(mean @ self.matrix @ mean)
        return max(left, 0.0)


def _linearised(
    basis: Basis, rows: Rows, y: Floats, traits: Floats, mean: Floats, curve: Curve | None
) -> _Problem:
    """Returns the problem that is the regression's near some coefficients."""
    if curve is None:
        target, weight = y - np.average(y, weights=rows.weight), rows.weight
    else:
        eta = predict(basis, rows, traits, mean)
        value, slope = curve.at(eta)
        slope = np.maximum(slope, _LEAST_SLOPE)
        target, weight = eta + (y - value) / slope, rows.weight * slope * slope
    matrix, right = _normal_equations(basis, rows, traits, weight, target)
    return _Problem(matrix, right, float(weight @ (target * target)))


def _solved(
    problem: _Problem, noise: float, start: Floats, variance: Floats
) -> tuple[Floats, Floats]:
    """Returns the posterior mean and the lower Cholesky factor of the posterior precision.

    Args:
        problem: the equations.
        noise: variance of y at a weight of 1.
        start, variance: prior mean and variance of each coefficient, (n_columns,).
    """
    from scipy.linalg import cho_solve, cholesky

    precision = problem.matrix / noise
    precision.flat[:: len(precision) + 1] += 1.0 / variance
    # Transposed, which changes nothing in it, it is laid out as LAPACK takes it, without a copy.
    factor: Floats = cholesky(precision.T, lower=True, overwrite_a=True, check_finite=False)
    right = problem.right / noise + start / variance
    mean: Floats = cho_solve((factor, True), right, check_finite=False)
    return mean, factor


def predict(basis: Basis, rows: Rows, traits: Floats, coefficients: Floats) -> Floats:
    """Returns eta of each row, (n,)."""
    terms = basis.by_trait_term(coefficients).reshape(-1, N_TRAIT_TERMS)
    away = basis.by_distance(coefficients)
    if len(rows.cell) * _DENSE >= len(terms) * len(traits):
        everywhere: Floats = terms @ traits.T
        dense: Floats = everywhere[rows.pair, rows.cell]
        dense += away[rows.rule, rows.pair % N_ACTIONS]
        return dense
    eta = np.empty(len(rows.cell))
    _predict(rows.cell, rows.pair, rows.rule, traits, terms, away, eta)
    return eta


@Compiled
def _predict(
    cell: NDArray[np.int32],
    pair: NDArray[np.int32],
    rule: NDArray[np.uint8],
    traits: Floats,
    terms: Floats,
    away: Floats,
    eta: Floats,
) -> None:
    for i in range(len(eta)):
        value = away[rule[i], pair[i] % away.shape[1]]
        for k in range(traits.shape[1]):
            value += traits[cell[i], k] * terms[pair[i], k]
        eta[i] = value


def _normal_equations(
    basis: Basis, rows: Rows, traits: Floats, weight: Floats, target: Floats
) -> tuple[Floats, Floats]:
    if len(rows.cell) <= _FEW_ROWS:
        context, action = np.divmod(rows.pair, N_ACTIONS)
        columns = basis.design(context, action, rows.rule, traits[rows.cell])
        weighted = columns.T * weight
        return weighted @ columns, weighted @ target
    n = N_TRAIT_TERMS + N_DISTANCES
    pairs = len(basis.contexts[ONE]) * N_ACTIONS
    squares, sums = np.zeros((pairs, n, n)), np.zeros((pairs, n))
    first = 0
    if len(rows.cell) * _DENSE >= pairs * len(traits):
        first = N_TRAIT_TERMS
        shape = pairs, len(traits)
        place = rows.pair.astype(np.int64) * shape[1] + rows.cell
        one, other = np.tril_indices(first)
        weights = np.bincount(place, weight, pairs * shape[1]).reshape(shape)
        squares[:, one, other] = weights @ (traits[:, one] * traits[:, other])
        targets = np.bincount(place, weight * target, pairs * shape[1]).reshape(shape)
        sums[:, :first] = targets @ traits
    _accumulate(
        rows.cell,
        rows.pair,
        rows.rule,
        weight,
        target,
        traits,
        DISTANCE,
        first,
        squares,
        sums,
    )
    of_contexts = -1, N_ACTIONS, n
    return basis.normal_equations(squares.reshape(*of_contexts, n), sums.reshape(of_contexts))


@Compiled
def _accumulate(
    cell: NDArray[np.int32],
    pair: NDArray[np.int32],
    rule: NDArray[np.uint8],
    weight: Floats,
    target: Floats,
    traits: Floats,
    distance: Floats,
    first: int,
    squares: Floats,
    sums: Floats,
) -> None:
    """Adds up weighted products of the trait terms and distances of each pair.

    Args:
        cell, pair, rule: the fields of `Rows`.
        weight, target: of each row, (n,).
        traits: trait terms of each cell, (n_cells, t).
        distance: `recparams_rl.basis.DISTANCE`.
        first: the first of terms and distances to do, with all up to it; those before are done.
        squares: zeros, (n_pairs, t + 7, t + 7).
        sums: zeros, (n_pairs, t + 7).
    """
    n_terms = traits.shape[1]
    n = squares.shape[1]
    x = np.empty(n)
    for i in range(len(cell)):
        p = pair[i]
        x[:n_terms] = traits[cell[i]]
        x[n_terms:] = distance[rule[i], p % distance.shape[1]]
        for k in range(first, n):
            if x[k] != 0.0:
                wx = weight[i] * x[k]
                sums[p, k] += wx * target[i]
                for m in range(k + 1):
                    squares[p, k, m] += wx * x[m]
    for p in range(len(squares)):
        for k in range(n):
            for m in range(k):
                squares[p, m, k] = squares[p, k, m]
