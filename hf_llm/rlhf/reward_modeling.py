"""Reward models from preferences (arXiv 1706.03741, 2203.02155): training, and how far their scores can be trusted."""

import functools
import math
from dataclasses import dataclass

import numpy
import pandas
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer
from trl import RewardConfig, RewardTrainer

from hf_llm.training.opening import open_config
from hf_llm.training.report import Results
from hf_llm.tuning import figures
from hf_llm.tuning.conversations import is_conversation
from hf_llm.tuning.examples import check_tokens
from hf_llm.tuning.job import TuningConfig, usage

from .preferences import PreferenceData
from .rewards import RewardModel, scored_ids
from .runs import PreferenceRun, tuner


HEAD = AutoModelForSequenceClassification
SIDES = ("chosen", "rejected")
BINS = 10  # of the calibration


@dataclass(kw_only=True)
class RewardModelConfig(TuningConfig):
    """A run of `recipes/reward_model.py`.

    Attributes:
        data: pairs of texts of which one is preferred, or rated texts to make such pairs of.
        shown: how many pairs of the test split the card shows, those where the model errs most.
    """

    data: PreferenceData
    shown: int = 4


class RewardModeling(PreferenceRun):
    """Trains on preferences, and judges the scores on held-out pairs."""

    config_class = RewardModelConfig
    arguments_class = RewardConfig
    trainer_class = tuner(RewardTrainer)
    kind = "pairs of texts"
    needs_end = False

    def prepare(self) -> Trainer:
        model_config = open_config(self.config.model, HEAD)
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.open_texts()
            self.settle_max_length(model_config)
            self.pairs = {split: self.encode(rows, split) for split, rows in self.data.items()}
        model = self.open_model(HEAD, self.tokenizer, len(self.pairs["train"]), num_labels=1)
        return self.make_trainer(model, self.pairs["train"], self.pairs["validation"])

    def encode(self, pairs: Dataset, split: str) -> Dataset:
        """The pairs with `chosen_ids` and `rejected_ids`, without those of which a text is longer than max_length.

        As TRL's RewardTrainer makes them, which cannot do without an end token; most encoders have none.
        """
        tokenizer = self.tokenizer

        def encode_pair(pair: dict) -> dict:
            return {f"{side}_ids": scored_ids(tokenizer, pair.get("prompt"), pair[side]) for side in SIDES}

        encoded = pairs.map(encode_pair, desc="Tokenizing")
        for side in SIDES:
            check_tokens(encoded, split, f"{side}_ids")
        limit = self.args.max_length or math.inf
        kept = encoded.filter(lambda pair: max(len(pair[f"{side}_ids"]) for side in SIDES) <= limit)
        self.note_lengths(split, 0, len(encoded) - len(kept), "one of the two texts is longer")
        return kept

    # ---- the final figures ------------------------------------------------------------------------------------------

    def evaluate(self) -> Results:
        """Score the pairs of the test split as PPO will score completions, and write the scores."""
        pairs = self.pairs["test"]
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        scorer = RewardModel(model, self.tokenizer, self.args.per_device_eval_batch_size)
        chosen, rejected = (numpy.array(scorer.score(pairs[f"{side}_ids"][:])) for side in SIDES)
        margins = chosen - rejected
        self.write_records(
            "scores.jsonl",
            (
                {**row, "chosen_score": good, "rejected_score": bad}
                for row, good, bad in zip(pairs.remove_columns(["chosen_ids", "rejected_ids"]), chosen, rejected)
            ),
        )
        longer = numpy.sign([len(c) - len(r) for c, r in zip(pairs["chosen_ids"], pairs["rejected_ids"])])
        drawn = {
            "margins.png": functools.partial(draw_margins, margins=margins),
            "calibration.png": functools.partial(draw_calibration, margins=margins),
        }
        if "gap" in pairs.column_names:
            by_gap = functools.partial(draw_accuracy_by_gap, margins=margins, gaps=pairs["gap"][:])
            drawn["accuracy_by_gap.png"] = by_gap
        worst = [
            {
                "margin": float(margins[i]),
                "preferred by people": _in_cell(pairs[i]["chosen"]),
                "rejected": _in_cell(pairs[i]["rejected"]),
            }
            for i in numpy.argsort(margins)[: self.config.shown].tolist()
        ]
        return self.results(
            task="text-classification",
            metrics=judge(margins),
            rows={f"{split} pairs": len(rows) for split, rows in self.pairs.items()},
            usage=self.usage(),
            baselines={"the longer text is better": {"accuracy": float(0.5 + longer.mean() / 2)}},
            notes=self.how_it_reads(),
            figures=drawn,
            files={"scores.jsonl": "scores of the test pairs"},
            tables={"The test pairs where the model errs most": worst},
        )

    def usage(self) -> str:
        if self.config.peft is not None:
            return usage(self.config, "text-classification", HEAD)
        options = 'function_to_apply="none", trust_remote_code=True'
        name = self.run_dir.name
        return f'from transformers import pipeline\n\nscore = pipeline("text-classification", "{name}", {options})'

    def how_it_reads(self) -> list[str]:
        end = self.tokenizer.eos_token
        text = "Conversations are read through the chat template"
        if not is_conversation(self.data["train"][0]["chosen"]):
            ending = "" if end is None else f", with `{end}` behind them"
            text = f"Prompt and completion are read as one text{ending}"
        return [
            f"{text}; PPO and the other recipes score them alike.",
            "The calibration takes each test pair in both orders: the probability that the first is better is the "
            "sigmoid of the difference of the scores.",
        ]


def judge(margins: numpy.ndarray) -> dict[str, float]:
    """Figures of a reward model from the margins, score of the chosen less score of the rejected text, of its pairs.

    `accuracy` counts equal scores as half right; `log_loss` is that of the Bradley-Terry model; `calibration_error` is
    the expected calibration error (arXiv 1706.04599) of its probabilities, over both orders of each pair.
    """
    probability, outcome = both_orders(margins)
    places = numpy.minimum((probability * BINS).astype(int), BINS - 1)
    gaps = [abs((probability - outcome)[places == b].sum()) for b in range(BINS)]
    return {
        "accuracy": float((0.5 + numpy.sign(margins) / 2).mean()),
        "log_loss": float(numpy.logaddexp(0, -margins).mean()),
        "mean_margin": float(margins.mean()),
        "calibration_error": float(sum(gaps) / len(probability)),
    }


def both_orders(margins: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The probability that the first text is better, and whether it is, with each pair in both orders."""
    signed = numpy.concatenate([margins, -margins])
    right = numpy.concatenate([numpy.ones_like(margins), numpy.zeros_like(margins)])
    return 1 / (1 + numpy.exp(-signed)), right


# ---- figures --------------------------------------------------------------------------------------------------------


def draw_margins(figure, margins: numpy.ndarray) -> None:
    """Histogram of the margins."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    sides = {"right": margins[margins > 0], "wrong": margins[margins <= 0]}
    labels = [f"{name}: {len(side) / len(margins):.1%} of {len(margins):,}" for name, side in sides.items()]
    axes.hist(list(sides.values()), bins=40, stacked=True, color=["#2171b5", "#d94801"], label=labels)
    axes.set(xlabel="score of the chosen less score of the rejected text", ylabel="pairs")
    axes.legend(frameon=False)


def draw_calibration(figure, margins: numpy.ndarray) -> None:
    """How often the first text of a pair is better, over how probable that is to the model."""
    figures.calibration(figure, *both_orders(margins), bins=BINS)
    axes = figure.axes[0]
    axes.set(xlabel="predicted P(first > second)", ylabel="observed frequency; share of pairs")
    axes.lines[-1].set_label("observed")
    axes.legend(frameon=False, loc="upper left")


def draw_accuracy_by_gap(figure, margins: numpy.ndarray, gaps: list[float]) -> None:
    """Accuracy over the difference of people's ratings, in quarters of the pairs."""
    quarters = pandas.qcut(gaps, 4, duplicates="drop")
    right = pandas.Series(margins > 0).groupby(quarters, observed=True)
    names = [f"{quarter.left:.1f} to {quarter.right:.1f}" for quarter in right.groups]
    accuracy, counts = (dict(zip(names, values)) for values in (right.mean(), right.count()))
    figures.bars(figure, accuracy, "accuracy", counts)
    figure.axes[0].set(xlabel="difference of the ratings")


def _in_cell(text: str | list, most: int = 300) -> str:
    """A text or conversation in a cell of a Markdown table."""
    if not isinstance(text, str):
        text = " ".join(f"**{message['role']}** {message['content']}" for message in text)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[:most] + " ..."
