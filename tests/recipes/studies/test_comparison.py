"""Before and after alignment: samples, probabilities, the judge, and the page."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from studies.comparison import Comparison
from studies.comparison_page import table_text
from studies.judging import Judge, distinct_n, log_probs, sample_completions


sys.path.insert(0, str(Path(__file__).parents[2] / "tuning"))  # for small_models

from small_models import save_checkpoint, sentences, write_config, write_jsonl  # noqa: E402


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {name: str(save_checkpoint(folder / name, "decoder")) for name in ("before", "reward")}
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(found["before"])
    other = AutoModelForCausalLM.from_pretrained(found["before"])
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    scorer = AutoModelForSequenceClassification.from_pretrained(found["before"], num_labels=1)
    for name, model in (("after", other), ("reward", scorer)):
        found[name] = str(folder / name)
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture
def settings(tmp_path, tmp_path_factory, checkpoints):
    texts = sentences(120)
    rows = [{"text": t, "label": int("red" in t.split())} for t in texts]
    data = write_jsonl(tmp_path_factory.mktemp("data") / "texts.jsonl", rows)

    def make(**changes):
        sections = {
            "output_dir": str(tmp_path / "report"),
            "before": {"path": checkpoints["before"]},
            "after": {"path": checkpoints["after"]},
            "reward_model": checkpoints["reward"],
            "judge": {"name": data, "test_fraction": 0.3},
            "prompts": {"dataset": {"name": data, "test_fraction": 0.3}, "prompt_words": 2},
            "max_new_tokens": 6,
            "batch_size": 16,
        }
        return Comparison.load(write_config(tmp_path / "report.yaml", sections, changes))

    return make


def test_distinct_n_by_hand():
    assert distinct_n(["a b c", "a b d"]) == 3 / 4  # ab, bc, ab, bd
    assert distinct_n(["a a a a a"]) == 1 / 4
    assert distinct_n(["a b a"], n=1) == 2 / 3
    assert distinct_n(["a"]) == 0.0


def test_the_judge_learns_what_texts_are_wanted():
    texts = [f"{word} thing number {i}" for i in range(40) for word in ("lovely", "awful")]
    judge = Judge(texts, [1, 0] * 40)
    assert judge(["a lovely day", "an awful day", "loveliest"]).tolist() == [True, False, True]
    assert judge.accuracy(["a lovely day", "an awful day"], [1, 1]) == 0.5


def test_log_probs_are_those_of_the_models_own_loss(checkpoints):
    """Each pair alone, without padding, by the loss that transformers' interface gives."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints["before"]).eval()
    prompts, completions = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 2], [16]]
    for prompt, completion, found in zip(prompts, completions, log_probs(model, prompts, completions, 2)):
        ids = torch.tensor([prompt + completion])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert found == pytest.approx(-loss * len(completion), abs=1e-4)


def test_samples_follow_the_models_distribution(checkpoints):
    """First tokens of many samples against the softmax of the logits; completions go on to their end token."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints["after"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["after"])
    (rows,) = sample_completions(model, tokenizer, [[5, 6, 7]], max_new_tokens=1, num_samples=4000)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor(rows)[:, 0], minlength=len(expected)) / 4000
    assert (found - expected).abs().sum() / 2 < 3 * (len(expected) / (2 * math.pi * 4000)) ** 0.5  # total variation
    twice = [sample_completions(model, tokenizer, [[5], [6, 7]], 20, 2, batch_size=1, seed=3) for _ in range(2)]
    assert twice[0] == twice[1]
    end = tokenizer.eos_token_id
    assert all(end not in row[:-1] and (row[-1] == end or len(row) == 20) for rows in twice[0] for row in rows)


def test_a_comparison_writes_its_page(settings, capsys):
    config = settings()
    assert Comparison(config).run() is None
    folder = Path(config.output_dir)
    results = json.loads((folder / "metrics.json").read_text())
    before, best, after = results["models"].values()
    assert before["kl"] == pytest.approx(0, abs=1e-5) and after["kl"] > 0.05
    assert best["kl"] == pytest.approx(math.log(4) - 3 / 4)
    assert best["reward"] > before["reward"] and 0 < best["reward_error"] < 1
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == results["prompts"] > 20
    rewards = [row["after"]["reward"] for row in rows]
    assert after["reward"] == pytest.approx(sum(rewards) / len(rewards))
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "best of 4 before" in page and rows[0]["prompt"] in page
    assert f"{after['judged_positive']:.1%}" in table_text(results) and table_text(results) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_of": 1}, "best_of = 1 must be at least 2"),
        ({"pictures": {"curves": "no.png"}}, "there is no file 'no.png'"),
        ({"befor": {"path": "x"}}, "did you mean 'before'"),
        ({"reward_model": "no-such-model"}, "no-such-model"),
        ({"rewards": [{"function": "length"}]}, "give either reward_model, or rewards"),
    ],
)
def test_bad_input(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        Comparison(settings(**changes)).prepare()


def test_rewards_of_functions_alone(settings):
    """As PPO takes them, summed by their weights; the best of several is chosen by the sum."""
    functions = [
        {"function": "length", "options": {"target": 4}},
        {"function": "regex", "options": {"pattern": "red"}, "weight": 2.0},
    ]
    config = settings(reward_model=None, rewards=functions)
    Comparison(config).run()
    rows = [json.loads(line) for line in (Path(config.output_dir) / "completions.jsonl").read_text().splitlines()]
    for row in rows:
        text = row["after"]["text"]
        expected = max(0.0, 1 - abs(len(text.split()) - 4) / 4) + 2.0 * ("red" in text)
        assert row["after"]["reward"] == pytest.approx(expected)
