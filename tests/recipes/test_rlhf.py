"""The recipes of preferences and rewards: a reward model, DPO, KTO, GRPO, RLOO and PPO on tiny models."""

import functools
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from hf_llm.rlhf.aligning import ALIGNMENTS
from hf_llm.rlhf.methods import METHODS
from hf_llm.rlhf.preferences import PreferenceData, Ratings, load_split, pairs_of_ratings, prompt_ids
from hf_llm.rlhf.reward_functions import make_reward_function
from hf_llm.rlhf.reward_modeling import RewardModeling, judge
from hf_llm.rlhf.rewards import RewardModel, open_reward_model, scored_ids


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tuning"))  # for small_models

from small_models import save_checkpoint, sentences, write_config, write_jsonl  # noqa: E402


RECIPES = ("reward_model", "dpo", "kto", "grpo", "rloo", "ppo")
CONFIGS = sorted(p for name in ("reward", *RECIPES[1:]) for p in (ROOT / "recipes" / "configs").glob(f"{name}-*.yaml"))
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
ROLLOUTS = {"max_completion_length": 4}
GROUPS = {**ROLLOUTS, "num_generations": 4, "max_steps": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    texts = sentences(80)
    chat = [[{"role": "user", "content": t}] for t in texts]
    rows = {
        "pairs": [{"prompt": f"{t} =", "chosen": " red cat", "rejected": " blue dog sings"} for t in texts],
        "implicit": [{"chosen": f"{t} red", "rejected": f"{t} blue"} for t in texts],
        "conversations": [
            {"prompt": c, "chosen": [{"role": "assistant", "content": "red"}],
             "rejected": [{"role": "assistant", "content": "blue"}]}
            for c in chat
        ],
        "ratings": [{"text": t, "rating": float(len(t.split()) - 5), "source": i % 2} for i, t in enumerate(texts)],
        "judged": [{"prompt": f"{t} =", "completion": " red", "label": i % 2 == 0} for i, t in enumerate(texts)],
        "prompts": [{"prompt": f"{t} =", "answer": t.split()[0]} for t in texts],
        "chat prompts": [{"prompt": c} for c in chat],
        "one label": [{"prompt": t, "completion": "red", "label": True} for t in texts],
    }  # fmt: skip
    return {name: write_jsonl(folder / f"{name}.jsonl", content) for name, content in rows.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {s: str(save_checkpoint(folder / s, s)) for s in ("decoder", "encoder", "encoder-decoder")}
    found["learned"] = str(save_checkpoint(folder / "learned", "decoder", position_embedding="learned"))
    labels = AutoModelForSequenceClassification.from_pretrained(found["decoder"], num_labels=3)
    labels.save_pretrained(folder / "labels")
    AutoTokenizer.from_pretrained(found["decoder"]).save_pretrained(folder / "labels")
    get_peft_model(labels, LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(folder / "adapter of labels")
    endless = AutoTokenizer.from_pretrained(found["decoder"])
    endless.eos_token = None
    endless.save_pretrained(folder / "endless")
    return {**found, **{name: str(folder / name) for name in ("labels", "adapter of labels", "endless")}}


@pytest.fixture
def recipe(monkeypatch, tmp_path, files, checkpoints, capsys):
    """Runs a recipe on a tiny decoder with `changes`; returns its exit status and what it wrote to standard error."""

    def start(name: str, rows: str, changes: dict | None = None, training: dict | None = None) -> tuple[int, str]:
        sections = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": checkpoints["decoder"]},
            "data": {"dataset": files[rows]},
            "training": {**TRAINING, **(training or {})},
            **({} if name == "reward_model" else {"completions": {"count": 1, "max_new_tokens": 3}}),
        }
        path = write_config(tmp_path / "run.yaml", sections, changes or {})
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(path)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
        return end.value.code, capsys.readouterr().err

    return start


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


def figures(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


# ---- the reward model -----------------------------------------------------------------------------------------------


@pytest.fixture
def weights_change(checkpoints):
    """Whether a trained folder's weights differ from those that it started from."""

    def changed(run: Path) -> bool:
        before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (checkpoints["decoder"], run))
        return any(not torch.equal(before[name], after[name]) for name in before)

    return changed


def test_reward_model_of_ratings(recipe, run, checkpoints):
    """The figures follow from the stored scores, which the saved model gives again inside PPO."""
    ratings = {"minimum_gap": 1.0, "margin": 0.1}
    changes = {"data": {"ratings": ratings}, "training": {"max_steps": 8}}
    status, error = recipe("reward_model", "ratings", changes)
    assert status == 0, error
    rows = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    margins = numpy.array([row["chosen_score"] - row["rejected_score"] for row in rows])
    found = figures(run)
    assert found["trainable_parameters"] == found["parameters"]
    assert found["accuracy"] == pytest.approx((margins > 0).mean())
    assert found["log_loss"] == pytest.approx(numpy.log1p(numpy.exp(-margins)).mean(), abs=1e-5)
    assert all(row["gap"] >= 1 for row in rows)
    pictures = {"curves.png", "margins.png", "calibration.png", "accuracy_by_gap.png"}
    assert pictures <= {p.name for p in run.glob("*.png")}
    scorer = RewardModel(open_reward_model(str(run)), AutoTokenizer.from_pretrained(run), batch_size=3)
    scores = scorer([""] * len(rows), [row["chosen"] for row in rows])
    numpy.testing.assert_allclose(scores, [row["chosen_score"] for row in rows], atol=1e-5)
    assert "| margin | preferred by people | rejected |" in (run / "README.md").read_text()


def test_pairs_are_tokenized_as_trl_does(files, checkpoints, tmp_path):
    """Against the columns that RewardTrainer makes of the same rows by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["decoder"], num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["decoder"])
    args = RewardConfig(str(tmp_path), bf16=False, report_to="none", use_cpu=True, gradient_checkpointing=False)
    for name in ("pairs", "implicit", "conversations"):
        rows = load_dataset("json", data_files=files[name], split="train").select(range(4))
        theirs = RewardTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train_dataset
        for row, expected in zip(rows, theirs, strict=True):
            assert scored_ids(tokenizer, row.get("prompt"), row["chosen"]) == expected["chosen_ids"]


def test_judgement_of_margins():
    """Accuracy, loss and calibration error of cases that can be counted by hand."""
    even = judge(numpy.zeros(4))
    assert even == pytest.approx(
        {"accuracy": 0.5, "log_loss": math.log(2), "mean_margin": 0.0, "calibration_error": 0.0}
    )
    odds = math.log(3)  # says 3 : 1
    honest = judge(numpy.array([odds, odds, odds, -odds]))
    assert honest["accuracy"] == 0.75 and honest["calibration_error"] == pytest.approx(0, abs=1e-12)
    boastful = judge(numpy.array([odds, -odds]))
    assert boastful["accuracy"] == 0.5 and boastful["calibration_error"] == pytest.approx(0.25)


def test_pairs_of_ratings_prefer_the_better_of_the_same_group():
    rows = [{"text": f"{i}", "rating": i % 7, "source": i % 3} for i in range(60)]
    ratings = Ratings(within="source", minimum_gap=2, pairs_per_text=3, margin=0.5)
    pairs = pairs_of_ratings(Dataset.from_list(rows), ratings)
    used = [int(t) for side in ("chosen", "rejected") for t in pairs[side]]
    assert len(pairs) > 20 and max(map(used.count, used)) <= 3
    for pair in pairs:
        better, worse = int(pair["chosen"]), int(pair["rejected"])
        assert better % 3 == worse % 3 and pair["gap"] == better % 7 - worse % 7 >= 2
        assert pair["margin"] == pair["gap"] / 2


def test_logs_lie_beside_the_model_and_show_no_test_split(recipe, run, tmp_path, monkeypatch):
    """Although it is evaluated before the training already."""
    monkeypatch.chdir(tmp_path)
    status, error = recipe("dpo", "pairs", {}, {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 2})
    assert status == 0, error
    assert not (tmp_path / "runs").exists()
    logs = EventAccumulator(str(run / "runs")).Reload()
    assert [event.step for event in logs.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in logs.Scalars("eval/loss")] == [2]


# ---- the others -----------------------------------------------------------------------------------------------------

LETTERS = [{"function": "regex", "options": {"pattern": "[aeiou]"}}]


@pytest.mark.parametrize(
    ("name", "data", "training", "changes"),
    [
        ("dpo", "pairs", {}, {}),
        ("kto", "judged", {}, {}),
        ("grpo", "prompts", GROUPS, {"rewards": LETTERS}),
        ("rloo", "prompts", GROUPS, {"rewards": LETTERS}),
        ("ppo", "prompts", {**ROLLOUTS, "num_iterations": 1}, {"rewards": LETTERS}),
    ],
)
def test_two_steps_on_a_decoder(recipe, run, weights_change, name, data, training, changes):
    """From configuration to card; the saved model opens as a plain one, and is another than before."""
    status, error = recipe(name, data, changes, training)
    assert status == 0, error
    assert weights_change(run)
    found = figures(run)
    shared = set(found) & set(found["baselines"]["before"])
    assert shared >= ({"reward", "mean_length"} if "rewards" in changes else {"loss", "margin"})
    written = {p.name for p in run.iterdir()}
    assert written >= {"README.md", "curves.png", "completions.jsonl", "config.json", "tokenizer.json"}
    assert ("critic.safetensors" in written) == (name == "ppo")
    assert found["parameters"] == AutoModelForCausalLM.from_pretrained(run).num_parameters()


@pytest.mark.parametrize(("name", "data"), [("kto", "judged"), ("dpo", "conversations")])
def test_what_is_cut_and_left_out_is_reported_of_every_split(name, data, recipe, run, files, checkpoints):
    """TRL leaves out examples whose prompt alone fills max_length, and cuts the others."""
    limit = 8 if data != "conversations" else 24
    status, error = recipe(name, data, {}, {"max_length": limit, "max_steps": 1})
    assert status == 0, error
    card, tokenizer = (run / "README.md").read_text(), AutoTokenizer.from_pretrained(checkpoints["decoder"])
    for split in ("train", "validation", "test"):
        rows = load_split(PreferenceData(dataset=files[data]), METHODS[name].data, split)
        prompts = [len(ids) for ids in prompt_ids(tokenizer, rows["prompt"][:])]
        sides = [side for side in ("chosen", "rejected", "completion") if side in rows.column_names]
        wholes = [max(len(scored_ids(tokenizer, row["prompt"], row[side])) for side in sides) for row in rows]
        left_out = sum(prompt >= limit for prompt in prompts)
        cut = sum(whole > limit > prompt for prompt, whole in zip(prompts, wholes))
        assert figures(run)["rows"][split] == len(rows) - left_out
        fates = {cut: f"are longer than training.max_length = {limit} tokens and were cut.", left_out: "were left out"}
        for count, fate in fates.items():
            assert (f"{count} of {len(rows)} examples of the {split} split {fate}" in card) == bool(count)
        assert split != "train" or (cut and left_out)


def test_conversations_of_parts(files, tmp_path):
    """Contents that are lists of text parts are read as texts, in every column."""
    parts = [{"type": "text", "text": "red"}, {"type": "text", "text": "cat"}]
    said = [{"role": "assistant", "content": parts}]
    rows = [{"prompt": [{"role": "user", "content": f"{n}"}], "chosen": said, "rejected": said[:0]} for n in range(30)]
    rows = [{**row, "rejected": [{"role": "assistant", "content": "blue"}]} for row in rows]
    data = PreferenceData(dataset=write_jsonl(tmp_path / "rows.jsonl", rows))
    loaded = load_split(data, "pairs of completions", "train")
    assert loaded[0]["chosen"] == [{"role": "assistant", "content": "red\ncat"}]
    assert loaded[0]["rejected"] == [{"role": "assistant", "content": "blue"}]


SILENT = [{"role": "assistant", "content": None}]
BAD_ROWS = {
    "null content": ({"prompt": "a", "chosen": SILENT, "rejected": SILENT * 2}, {}, "which is no text"),
    "null in a conversation": (
        {"prompt": SILENT, "chosen": SILENT, "rejected": SILENT * 2},
        {},
        "of train has 'prompt' whose message 0 (assistant) has the content null",
    ),
    "null text": ({"prompt": "a", "chosen": None, "rejected": "b"}, {}, "of train has None as 'chosen'"),
    "null rating": ({"text": "a", "rating": None}, {"ratings": Ratings()}, "of column 'rating' is None, no number"),
    "null column": ({"q": None, "chosen": "a", "rejected": "b"}, {"prompt_template": "{q}"}, "of column 'q' is null"),
    "null words": ({"text": None}, {"prompt_words": 3}, "of train has None as 'text'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(case, tmp_path):
    row, options, message = BAD_ROWS[case]
    good = {"text": "b", "rating": 1.0} if "rating" in row else {}
    rows = [{**row, **(good if n % 2 else {}), "number": n} for n in range(40)]
    kind = "prompts" if "prompt_words" in options else "pairs of texts"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_split(PreferenceData(dataset=write_jsonl(tmp_path / "rows.jsonl", rows), **options), kind, "train")


def test_ppo_with_a_reward_model_adapter_and_an_encoder_decoder(recipe, run, checkpoints):
    """An adapter that rewards (trained here), one on an encoder-decoder that learns, and a length reward beside it."""
    lora = {"method": "lora", "r": 2}
    status, error = recipe("reward_model", "pairs", {"peft": lora, "output_dir": str(run.parent / "reward")})
    assert status == 0, error
    rewards = [
        {"model": str(run.parent / "reward")},
        {"function": "length", "options": {"target": 3}, "weight": 0.5},
    ]
    changes = {"model": {"path": checkpoints["encoder-decoder"]}, "peft": lora, "rewards": rewards}
    status, error = recipe("ppo", "prompts", changes, {**ROLLOUTS, "num_iterations": 1})
    assert status == 0, error
    assert (run / "adapter_model.safetensors").is_file()
    row = json.loads((run / "completions.jsonl").read_text().splitlines()[0])
    assert set(row["after"]) == {"completion", "reward", "length"}


@pytest.mark.parametrize("name", ["dpo", "ppo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_samples_at_each_evaluation_change_nothing(recipe, run, name):
    changes, training = {"completions": {"count": 2, "max_new_tokens": 4}}, {"max_steps": 2}
    training |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    if name != "dpo":
        changes["rewards"] = LETTERS
    training |= {"ppo": {**ROLLOUTS, "num_iterations": 1}, "grpo": {**GROUPS, "max_steps": 2}}.get(name, {})
    outcomes = []
    for shown in (False, True):
        shutil.rmtree(run, ignore_errors=True)
        data = "pairs" if name == "dpo" else "prompts"
        status, error = recipe(name, data, {**changes, "samples_while_training": shown}, training)
        assert status == 0, error
        outcomes.append(load_file(run / "model.safetensors"))
    assert all(torch.equal(outcomes[1][weight], value) for weight, value in outcomes[0].items())
    history = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    drawn = [entry for entry in history if "samples" in entry]
    assert [entry["step"] for entry in drawn] == [1, 2] and len(drawn[0]["samples"]) == 2
    assert "## Samples while training" in (run / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_adapters_alone_are_saved_and_resumed(recipe, run, name):
    """The adapter, without a second frozen one, whose folder would stand in for it when the run goes on."""
    data, extra = ("conversations", {}) if name == "dpo" else ("prompts", GROUPS)
    changes = {"peft": {"method": "lora", "r": 2}, "data": {"chat_template": "chatml"} if name == "dpo" else {}}
    changes |= {"rewards": LETTERS} if name == "grpo" else {}
    status, error = recipe(name, data, changes, {**extra, "max_steps": 2, "save_strategy": "steps", "save_steps": 1})
    assert status == 0, error
    checkpoint = run / "checkpoint-1"
    assert [p.name for p in checkpoint.rglob("adapter_model.safetensors")] == ["adapter_model.safetensors"]
    once = load_file(run / "adapter_model.safetensors")
    shutil.rmtree(run / "checkpoint-2")
    status, error = recipe(name, data, changes, {**extra, "max_steps": 2, "save_strategy": "steps", "save_steps": 1})
    assert status == 0, error
    for weight, value in load_file(run / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, once[weight], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_resuming_in_a_later_epoch_is_exact(recipe, run, name):
    """The prompts that come next come next: 64 are four steps of 16 prompts, and the fifth is of the second epoch."""
    changes = {"rewards": LETTERS}
    training = {**GROUPS, "per_device_train_batch_size": 64, "max_steps": 7}
    training |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 7}
    status, error = recipe(name, "prompts", changes, training)
    assert status == 0, error
    epoch = json.loads((run / "checkpoint-5" / "trainer_state.json").read_text())["epoch"]
    assert 1 < epoch < 2
    whole = load_file(run / "model.safetensors")
    for step in (6, 7):
        shutil.rmtree(run / f"checkpoint-{step}")
    (run / "model.safetensors").unlink()
    status, error = recipe(name, "prompts", changes, training)
    assert status == 0, error
    assert json.loads((run / "checkpoint-7" / "trainer_state.json").read_text())["log_history"][-1]["step"] == 7
    resumed = load_file(run / "model.safetensors")
    assert all(torch.equal(resumed[weight], value) for weight, value in whole.items())


# ---- rewards --------------------------------------------------------------------------------------------------------


def test_reward_functions():
    make = functools.partial(make_reward_function, columns=["answer", "n"])
    conversation = [[{"role": "assistant", "content": "Red cat."}]]
    assert make("length", {"target": 2})(completions=["a b", "a", "a b c d e"]) == [1, 0.5, 0]
    assert make("regex", {"pattern": r"^\d+$"})(completions=["12", "a 12"]) == [1, 0]
    assert make("answer", {})(completions=conversation, answer=["red"]) == [1]
    assert make("number", {"column": "n"})(completions=["so 1 + 1,000 = 1,001", "none"], n=["#### 1001", 2]) == [1, 0]
    assert make("distinct", {"n": 1})(completions=["a b a b", ""]) == [0.5, 0]
    assert make("operator:countOf", {}).__name__ == "countOf"
    with pytest.raises(ValueError, match="numbers of column 'answer', and 'none' has none"):
        make("number", {})(completions=["1"], answer=["none"])
    with pytest.raises(ValueError, match="n = 0 must be at least 1"):
        make("distinct", {"n": 0})


# ---- bad input ------------------------------------------------------------------------------------------------------

BAD = {
    "columns": ("dpo", "ratings", {}, {}, "the train split has no column 'chosen'"),
    "one label": ("kto", "one label", {}, {}, "must occur; here they are [True]"),
    "prompts": ("grpo", "ratings", {"rewards": LETTERS}, GROUPS, "no column 'prompt'"),
    "no reward": ("grpo", "prompts", {}, GROUPS, "name at least one"),
    "needless reward": ("dpo", "pairs", {"rewards": LETTERS}, {}, "takes no rewards"),
    "reward name": ("ppo", "prompts", {"rewards": [{"function": "lenght"}]}, ROLLOUTS, "did you mean 'length'"),
    "reward options": ("ppo", "prompts", {"rewards": [{"function": "length"}]}, ROLLOUTS, "rewards.options.target"),
    "reward column": ("rloo", "chat prompts", {"rewards": [{"function": "answer"}]}, GROUPS, "column 'answer'"),
    "reward key": ("ppo", "prompts", {"rewards": [{"functoin": "length"}]}, ROLLOUTS, "did you mean 'function'"),
    "reward import": ("ppo", "prompts", {"rewards": [{"function": "no_such:x"}]}, ROLLOUTS, "cannot be imported"),
    "gap": ("reward_model", "ratings", {"data": {"ratings": {"minimum_gap": 99.0}}}, {}, "that far apart"),
    "pairs": ("dpo", "ratings", {"data": {"ratings": {}}}, {}, "it is for reward models"),
    "length": ("dpo", "pairs", {"model": {"path": "learned"}}, {"max_length": 512}, "reads 128 tokens at most"),
    "groups": ("grpo", "prompts", {"rewards": LETTERS}, {"num_generations": 3}, "training: "),
    "managed": ("dpo", "pairs", {}, {"eos_token": "x"}, "the tokenizer has it"),
    "template": ("grpo", "prompts", {"data": {"prompt_template": "{x}"}, "rewards": LETTERS}, GROUPS, "asks for 'x'"),
    "several labels": ("ppo", "prompts", {"rewards": [{"model": "labels"}]}, ROLLOUTS, "3 labels"),
    "an adapter's": ("ppo", "prompts", {"rewards": [{"model": "adapter of labels"}]}, ROLLOUTS, "with one label, and"),
    "no end": ("dpo", "pairs", {"model": {"tokenizer": "endless"}}, {}, "no end token"),
    "positions": ("rloo", "prompts", {"model": {"path": "learned"}, "rewards": LETTERS}, GROUPS, "attention_mask"),
    "dpo of an encoder": ("dpo", "pairs", {"model": {"path": "encoder"}}, {}, "has no head for AutoModelForCausalLM"),
}  # fmt: skip
STACK = {"model": {"path": "encoder-decoder"}}
BAD |= {
    "dpo of two stacks": ("dpo", "pairs", STACK, {}, "recipes/ppo.py on rewards"),
    "kto of two stacks": ("kto", "judged", STACK, {}, "recipes/seq2seq.py trains it on targets"),
    "grpo of two stacks": ("grpo", "prompts", {**STACK, "rewards": LETTERS}, GROUPS, "means nothing"),
    "rloo of two stacks": ("rloo", "prompts", {**STACK, "rewards": LETTERS}, GROUPS, "means nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(recipe, run, checkpoints, case):
    name, data, changes, training, message = BAD[case]
    changes = json.loads(json.dumps(changes))
    for section in [changes.get("model", {}), *changes.get("rewards", [])]:  # names of checkpoints become their paths
        section.update({k: checkpoints[v] for k, v in section.items() if k != "options" and v in checkpoints})
    status, error = recipe(name, data, changes, training)
    assert status == 2 and message in error.splitlines()[-1], error
    assert not list(run.glob("checkpoint-*")) and not (run / "model.safetensors").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_is_legal(path, tmp_path):
    job = RewardModeling if path.stem.startswith("reward-") else ALIGNMENTS[path.stem.partition("-")[0]]
    run = job(job.load(path, ["--output_dir", str(tmp_path)]))
    assert run.make_arguments().output_dir == str(tmp_path)
