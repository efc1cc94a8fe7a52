"""Scaling laws: fit L(N, D) = E + A / N^alpha + B / D^beta to finished runs, and predict others.

The fit is approach 3 of Hoffmann et al. (https://arxiv.org/abs/2203.15556): Huber loss between log-losses, minimised
by L-BFGS from a grid of starting points. Two faults of theirs that Besiroglu et al. (https://arxiv.org/abs/2404.10102)
found are avoided: the loss is summed, not averaged, so that the optimiser does not stop early, and intervals come
from a bootstrap over all runs.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize


HUBER_DELTA = 1e-3  # log-loss beyond which a run counts linearly, as in the paper
STARTS = {  # the paper's grid
    "a": np.arange(0, 30, 5.0),
    "b": np.arange(0, 30, 5.0),
    "e": np.arange(-1, 1.5, 0.5),
    "alpha": np.arange(0, 2.5, 0.5),
    "beta": np.arange(0, 2.5, 0.5),
}
BOUNDS = [(-20.0, 20.0), (-20.0, 20.0), (-10.0, 10.0), (0.0, 3.0), (0.0, 3.0)]  # of a, b (centred), e, alpha, beta
BEST_STARTS = 16  # of the grid, from which the optimiser goes on


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token for N parameters and D training tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters, tokens):
        """Loss of models of `parameters` weights after `tokens` tokens; arrays broadcast."""
        return self.E + self.A / np.power(parameters, self.alpha) + self.B / np.power(tokens, self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens that give the lowest loss for a budget of FLOPs = 6 N D (the paper's equation 4)."""
        both = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = ratio * (flops / 6) ** (self.beta / both)
        return parameters, flops / 6 / parameters


@dataclass(frozen=True)
class Fit:
    """
    A fitted law and its uncertainty.

    Attributes:
        law: of all runs.
        resampled: laws of bootstrap samples of the runs.
        residuals: (runs,) log of measured over fitted loss.
    """

    law: ScalingLaw
    resampled: list[ScalingLaw]
    residuals: np.ndarray

    def interval(self, quantity, confidence: float = 0.95) -> tuple[float, float]:
        """Percentile interval of `quantity(law)` over the bootstrap."""
        tail = 50 * (1 - confidence)
        low, high = np.percentile([quantity(law) for law in self.resampled], [tail, 100 - tail])
        return float(low), float(high)


def fit_scaling_law(parameters, tokens, losses, bootstrap: int = 200, seed: int = 0) -> Fit:
    """
    Args:
        parameters, tokens, losses: (runs,) of finished runs; at least 6, with several sizes and several durations.
        bootstrap: samples of the runs for intervals; 0 for none.
        seed: of the samples.

    Raises:
        ValueError: too few runs, values that are not positive, or only one size or duration.
    """
    parameters, tokens, losses = (np.asarray(v, float) for v in (parameters, tokens, losses))
    if not len(parameters) == len(tokens) == len(losses) or len(losses) < 6:
        raise ValueError(f"{len(losses)} runs: a fit of five constants needs at least 6")
    for name, values in {"parameters": parameters, "tokens": tokens, "losses": losses}.items():
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be positive and finite")
        if name != "losses" and len(np.unique(values)) < 2:
            raise ValueError(f"{name} are the same in all runs: vary them")
    points = np.log([parameters, tokens, losses])
    centre = points.mean(1)[:2]  # around which exponents and factors are fitted: that conditions the problem well
    points[:2] -= centre[:, None]
    starts = np.array(list(itertools.product(*STARTS.values())))
    starts[:, :2] -= starts[:, 3:] * centre
    starts = np.clip(starts, *np.transpose(BOUNDS))
    values = np.array([_objective(start, points)[0] for start in starts])
    best = min((_minimise(starts[i], points) for i in np.argsort(values)[:BEST_STARTS]), key=lambda found: found.fun)
    generator = np.random.default_rng(seed)
    resampled = []
    while len(resampled) < bootstrap:
        chosen = generator.integers(len(losses), size=len(losses))
        if min(len(np.unique(points[row, chosen])) for row in (0, 1)) > 1:
            resampled.append(_law(_minimise(best.x, points[:, chosen]).x, centre))
    law = _law(best.x, centre)
    return Fit(law, resampled, np.log(losses) - np.log(law.loss(parameters, tokens)))


def _law(x: np.ndarray, centre: np.ndarray) -> ScalingLaw:
    a, b, e, alpha, beta = x.tolist()
    A, B = np.exp([a + alpha * centre[0], b + beta * centre[1]]).tolist()
    return ScalingLaw(float(np.exp(e)), A, B, alpha, beta)


def _minimise(start: np.ndarray, points: np.ndarray):
    # scaled up, since L-BFGS stops at absolute tolerances that are coarse beside losses of 1e-6
    options = {"maxiter": 2000, "maxfun": 5000, "ftol": 1e-14, "gtol": 1e-9}
    return minimize(_scaled, start, (points,), jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options)


def _scaled(x: np.ndarray, points: np.ndarray) -> tuple[float, np.ndarray]:
    value, gradient = _objective(x, points)
    return 1e4 * value, 1e4 * gradient


def _objective(x: np.ndarray, points: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of Huber losses of the log-losses, and its gradient. x: (a, b, e, alpha, beta), A = exp(a) and so on, around
    the centre of `points`: (3, runs) logs of parameters, tokens and losses."""
    a, b, e, alpha, beta = x
    log_n, log_d, log_l = points
    terms = np.exp([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])  # of the loss
    fitted = terms.sum(0)
    residual = np.log(fitted) - log_l
    slope = np.clip(residual, -HUBER_DELTA, HUBER_DELTA)
    huber = slope * (residual - slope / 2)
    slope = slope / fitted * terms
    return float(huber.sum()), np.array([*slope.sum(1), -slope[0] @ log_n, -slope[1] @ log_d])
