"""Ablations: what is matched, what is trained, and what the intervals say."""

import json
import math

import pytest
from scipy import stats

from studies import ablation, cells
from studies.ablation import Study, mean_interval, parse_variations


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} " * 12}) + "\n" for i in range(120)))
    return {
        "model": {
            "model_type": "hf_llm_decoder",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        "tokenizer": {"algorithm": "byte", "vocab_size": 259},
        "data": {"corpus": str(path), "row_length": 32, "held_out_fraction": 0.2, "validation_rows": 8},
        "objective": {"name": "causal"},
        "training": {"max_steps": 40, "per_device_train_batch_size": 4},
        "cpu_threads": 1,
    }


def test_interval_is_students():
    interval = mean_interval([1.0, 2.0, 3.0])
    low, high = stats.t.interval(0.95, df=2, loc=2.0, scale=1 / math.sqrt(3))
    assert (interval.mean - interval.half, interval.mean + interval.half) == pytest.approx((low, high))
    assert mean_interval([1.0]).half is None


def test_variations_are_parsed():
    parsed = parse_variations(["norm_placement=pre,post", "training.learning_rate=1e-3,2e-3"])
    assert parsed == {"model.norm_placement": ["pre", "post"], "training.learning_rate": [1e-3, 2e-3]}


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--vary is missing"),
        (["norm_placement=pre"], "at least two values"),
        (["norm_placement"], "write field=value,value"),
        (["a=1,2", "a=3,4"], "given twice"),
        (["a=1,1"], "the same value twice"),
    ],
)
def test_wrong_variations(words, message):
    with pytest.raises(ValueError, match=message):
        parse_variations(words)


def study(settings, folder, *words, **options) -> Study:
    return Study(settings, parse_variations(list(words)), **{"seeds": [0, 1], "output_dir": folder, **options})


def test_parameters_are_matched_by_feed_forward_width(settings, tmp_path):
    plain, gated, deep = (
        study(settings, tmp_path, "feed_forward=gated,plain", "num_hidden_layers=2,3").prepared()[i] for i in (0, 2, 1)
    )
    counts = [cells.size_of(s)["parameters"] for s in (plain, gated, deep)]
    assert max(counts) - min(counts) <= 0.02 * min(counts)
    widths = [s["model"]["intermediate_size"] for s in (plain, gated, deep)]
    assert widths[1] == 96  # two matrices of 96 are three of 64
    assert widths[2] < 64


def test_flops_are_matched_by_steps(settings, tmp_path):
    short, long = study(settings, tmp_path, "num_hidden_layers=4,2", match="flops").prepared()
    ratio = cells.size_of(short)["flops"] / cells.size_of(long)["flops"]
    assert short["training"]["max_steps"] == 40 < long["training"]["max_steps"]
    assert ratio == pytest.approx(1, abs=0.5 / long["training"]["max_steps"])


@pytest.mark.parametrize(
    "words, options, message",
    [
        (["intermediate_size=32,64"], {}, "cannot be varied with match = 'parameters'"),
        (["num_hidden_layers=1,2"], {"match": "flop"}, "did you mean 'flops'"),
        (["num_hidden_layers=1,2"], {"seeds": [0, 0]}, "no seed twice"),
    ],
)
def test_wrong_studies(settings, tmp_path, words, options, message):
    with pytest.raises(ValueError, match=message):
        study(settings, tmp_path, *words, **options)


def test_wrong_values_are_found_before_training(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "pretrain", None)
    with pytest.raises(ValueError, match="unknown key 'model.norm_plaecment'; did you mean 'norm_placement'"):
        study(settings, tmp_path, "norm_plaecment=pre,post").run()
    with pytest.raises(ValueError, match="norm_placement"):
        study(settings, tmp_path, "norm_placement=pre,porst").run()


def test_a_study_trains_once_and_reports(settings, tmp_path, monkeypatch):
    short = cells.with_values(settings, {"training.max_steps": 2})
    result = study(short, tmp_path, "norm_placement=pre,post").run(say=lambda text: None)
    base, other = result["cells"]
    assert base["difference"] == {"mean": 0.0, "half": 0.0, "count": 2}
    pairs = [b - a for a, b in zip(base["losses"], other["losses"])]
    assert other["difference"]["mean"] == pytest.approx(sum(pairs) / 2)
    assert len(set(base["losses"] + other["losses"])) == 4
    text = (tmp_path / "ablation.md").read_text()
    assert "norm_placement=post" in text and f"{other['loss']['mean']:.4f} ± " in text
    assert (tmp_path / "ablation.png").stat().st_size > 10_000

    monkeypatch.setattr(cells, "pretrain", None)  # nothing is trained again
    assert study(short, tmp_path, "norm_placement=pre,post").run(say=lambda text: None) == result
    with pytest.raises(ValueError, match="holds a run with other settings"):
        study(settings, tmp_path, "norm_placement=pre,post").run()


def test_one_seed_has_no_interval():
    rows = ablation.summarised(
        [{"varied": {}, "name": "a", "size": {}, "metrics": [{"eval_loss": 2.0, "eval_bits_per_byte": 1.0}]}]
    )
    assert rows[0]["loss"] == {"mean": 2.0, "half": None, "count": 1}
