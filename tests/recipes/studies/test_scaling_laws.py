"""Scaling laws: published constants are recovered, and a study predicts what a law gives."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from studies import scaling_laws, scaling_study
from studies.scaling_laws import ScalingLaw, fit_scaling_law


# E, A, B, alpha, beta
PUBLISHED = {
    "Hoffmann et al. 2022, equation 10": ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024, table 1": ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
}
SIZES = np.repeat(np.geomspace(7e7, 1.6e10, 7), 5)
TOKENS = SIZES * np.tile(np.geomspace(3, 80, 5), 7)


@pytest.mark.parametrize("source", PUBLISHED)
def test_published_constants_are_recovered(source):
    law = PUBLISHED[source]
    fit = fit_scaling_law(SIZES, TOKENS, law.loss(SIZES, TOKENS), bootstrap=0)
    assert vars(fit.law) == pytest.approx(vars(law), rel=1e-4)
    assert np.abs(fit.residuals).max() < 1e-8


def test_the_optimum_agrees_with_the_papers():
    # Chinchilla: about 20 tokens per parameter, which the replication's law gives and the paper's own constants do not
    parameters, tokens = PUBLISHED["Besiroglu et al. 2024, table 1"].optimum(5.76e23)
    assert 15 < tokens / parameters < 25
    for law in PUBLISHED.values():
        parameters, tokens = law.optimum(1e21)
        assert 6 * parameters * tokens == pytest.approx(1e21)
        nearby = parameters * np.array([0.97, 1.03])
        assert (law.loss(nearby, 1e21 / 6 / nearby) > law.loss(parameters, tokens)).all()


def test_intervals_cover_the_constants_of_noisy_runs():
    law = ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.003, len(SIZES)))
    fit = fit_scaling_law(SIZES, TOKENS, law.loss(SIZES, TOKENS) * noise, bootstrap=30)
    low, high = fit.interval(lambda fitted: float(fitted.loss(7e10, 1.4e12)))  # beyond every run
    assert low < law.loss(7e10, 1.4e12) < high < 1.01 * low
    low, high = fit.interval(lambda fitted: fitted.E)
    assert low < law.E < high


def test_gradient():
    points = np.random.default_rng(0).normal(size=(3, 8)) * 1e-3 + 0.2

    def part(i: int):
        return lambda x: scaling_laws._objective(x, points)[i]

    assert check_grad(part(0), part(1), np.array([-1.0, -1.2, -0.9, 0.3, 0.4])) < 1e-7


@pytest.mark.parametrize(
    "runs, message",
    [
        (([1, 2], [1, 2], [1, 2]), "2 runs: a fit of five constants needs at least 6"),
        (([1] * 6, range(1, 7), [1] * 6), "parameters are the same in all runs"),
        ((range(1, 7), range(1, 7), [0] + [1] * 5), "losses must be positive"),
    ],
)
def test_bad_runs(runs, message):
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(*(list(column) for column in runs))


def test_a_study_predicts_the_law_that_its_runs_follow(tmp_path, monkeypatch):
    law = ScalingLaw(1.5, 60.0, 90.0, 0.3, 0.35)
    trained = []

    def train(settings, folder):
        size, steps = settings["model"]["size"], settings["training"]["max_steps"]
        trained.append((size, steps))
        return {"eval_loss": float(law.loss(size, steps * 100)), "train_seconds": 1.0}

    monkeypatch.setattr(scaling_study, "run_cell", train)
    monkeypatch.setattr(scaling_study, "checked", lambda settings: settings)
    monkeypatch.setattr(scaling_study, "share_tokenizer", lambda settings, folder: settings)
    monkeypatch.setattr(scaling_study, "tokens_of", lambda settings: settings["training"]["max_steps"] * 100)
    monkeypatch.setattr(scaling_study, "size_of", lambda s: {"parameters": s["model"]["size"], "flops": 1.0})
    settings = {
        "model": {},
        "training": {"max_steps": 100, "warmup_steps": 10},
        "ladder": {
            "models": [{"size": size} for size in (10_000, 40_000, 160_000)],
            "steps": [100, 400, 1600],
            "target": {"size": 500_000, "max_steps": 5000},
            "bootstrap": 3,
        },
    }
    result = scaling_study.run_study(settings, tmp_path, say=lambda text: None)
    assert trained[-1] == (500_000, 5000) and len(set(trained)) == 10
    assert result["prediction"]["loss"] == pytest.approx(result["measured"]["loss"], rel=1e-6)
    assert "0.0 %)" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="ladder.target.max_steps is missing"):
        ladder = {**settings["ladder"], "target": {"size": 3}}
        scaling_study.run_study({**settings, "ladder": ladder}, tmp_path)
