"""Reward models from preferences (arXiv 1706.03741, 2203.02155): training, and how far their scores can be trusted."""

import json
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from hf_llm.data.tasks import SPLITS
from hf_llm.training.runs import run_directory, set_cpu_threads
from hf_llm.tuning import figures
from hf_llm.tuning.config import TuningConfig, load_tuning_config
from hf_llm.tuning.conversations import is_conversation
from hf_llm.tuning.encoding import check_tokens
from hf_llm.tuning.finetuning import describe_dataset
from hf_llm.tuning.models import open_config
from hf_llm.tuning.report import Results
from hf_llm.tuning.running import prepare_model, run

from .preferences import PreferenceData, load_split, scored_ids
from .rewards import RewardModel
from .runs import MANAGED, AlignmentMixin, draw_history, make_arguments, open_text_tokenizer, settle_max_length


logger = logging.getLogger(__name__)

PANELS = (("loss", ("loss",)), ("accuracy", ("accuracy",)), ("margin", ("margin",)), ("score", ("mean_reward",)))
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


class RewardTuner(AlignmentMixin, RewardTrainer):
    pass


def load_reward_config(path: str | Path, overrides: list[str] = ()) -> RewardModelConfig:
    """The run that a YAML file and `--section.field value` overrides describe. ValueError names what is wrong."""
    return load_tuning_config(RewardModelConfig, RewardConfig, path, overrides, MANAGED)


def train_reward_model(config: RewardModelConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train, judge on held-out pairs, save and report; go on from a checkpoint where there is one.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with the configuration, the data or the checkpoint, before training starts.
    """
    set_cpu_threads(config.cpu_threads)
    args = make_arguments(config, RewardConfig)
    with run_directory(args):
        return _Run(config, args).run(card_template)


class _Run:
    """The parts of one run, made in order: pairs, tokenizer, token ids, model, trainer."""

    def __init__(self, config: RewardModelConfig, args: RewardConfig):
        self.config, self.args = config, args
        model_config = open_config(config.model, AutoModelForSequenceClassification)
        with args.main_process_first():  # the first process fills the caches that the others read
            pairs = {split: load_split(config.data, "pairs of texts", split) for split in SPLITS}
            self.tokenizer = open_text_tokenizer(config, pairs, needs_end=False)
            settle_max_length(config, args, model_config, self.tokenizer)
            self.notes: list[str] = []
            self.fingerprint = pairs["train"]._fingerprint
            self.pairs = {split: self.encode(rows, split) for split, rows in pairs.items()}
        model = prepare_model(
            config,
            AutoModelForSequenceClassification,
            self.tokenizer,
            args,
            num_samples=len(self.pairs["train"]),
            num_labels=1,
        )
        self.trainer = RewardTuner(
            model=model,
            args=args,
            train_dataset=self.pairs["train"],
            eval_dataset=self.pairs["validation"],
            processing_class=self.tokenizer,
        )

    def encode(self, pairs: Dataset, split: str) -> Dataset:
        """The pairs with `chosen_ids` and `rejected_ids`, without those of which a text is longer than max_length."""

        tokenizer = self.tokenizer

        def encode_pair(pair: dict) -> dict:
            prompt = pair.get("prompt")
            return {f"{side}_ids": scored_ids(tokenizer, prompt, pair[side]) for side in ("chosen", "rejected")}

        encoded = pairs.map(encode_pair, desc="Tokenizing")
        for side in ("chosen", "rejected"):
            check_tokens(encoded, split, f"{side}_ids")
        limit = self.args.max_length
        if limit is None:
            return encoded
        kept = encoded.filter(lambda pair: max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) <= limit)
        if not len(kept):
            raise ValueError(f"training.max_length = {limit}: every pair of the {split} split is longer")
        if len(kept) < len(encoded):
            note = (
                f"{len(encoded) - len(kept):,} of {len(encoded):,} pairs of the {split} split are longer than "
                f"training.max_length = {limit} tokens and were left out."
            )
            logger.warning(note)
            self.notes.append(note)
        return kept

    def run(self, card_template: Path | None) -> signal.Signals | None:
        return run(self.trainer, self.config, self.evaluate, card_template, {"fingerprint": self.fingerprint})

    # ---- the final figures ------------------------------------------------------------------------------------------

    def evaluate(self) -> Results:
        """Score the pairs of the test split as PPO will score completions, and write the scores."""
        pairs = self.pairs["test"]
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        trained = [p for p in model.parameters() if p.requires_grad]
        scorer = RewardModel(model, self.tokenizer, self.args.per_device_eval_batch_size)
        chosen, rejected = (numpy.array(scorer(*_prompts_and_answers(pairs, s))) for s in ("chosen", "rejected"))
        for parameter in trained:  # a scorer freezes its model, and the report counts what was trained
            parameter.requires_grad_(True)
        margins = chosen - rejected
        if self.args.should_save:
            self.write_scores(pairs, chosen, rejected)
        longer = numpy.sign([len(c) - len(r) for c, r in zip(pairs["chosen_ids"], pairs["rejected_ids"])])
        drawn = {"training.png": draw_history(PANELS, self.trainer.state.log_history), **judgement_figures(margins)}
        if "gap" in pairs.column_names:
            drawn["accuracy_by_gap.png"] = accuracy_by_gap(margins, numpy.array(pairs["gap"]))
        return Results(
            task="text-classification",
            dataset=describe_dataset(self.config.data.dataset),
            metrics=judge(margins),
            rows={f"{split} pairs": len(rows) for split, rows in self.pairs.items()},
            usage=_usage(self.config),
            baselines={"the longer text is better": {"accuracy": float(0.5 + longer.mean() / 2)}},
            notes=[*self.how_it_reads(), *self.notes],
            figures=drawn,
            files={"scores.jsonl": "scores of the test pairs"},
            samples=_worst_pairs(pairs, margins, self.config.shown),
        )

    def how_it_reads(self) -> list[str]:
        end = self.tokenizer.eos_token
        conversation = is_conversation(self.pairs["train"][0]["chosen"])
        text = (
            "Conversations are read through the chat template"
            if conversation
            else "Prompt and completion are read as one text"
        )
        ending = f", with `{end}` behind them" if end is not None and not conversation else ""
        return [
            f"{text}{ending}; PPO and the other recipes score them alike.",
            "The calibration takes each test pair in both orders: the probability that the first is better is the "
            "sigmoid of the difference of the scores.",
        ]

    def write_scores(self, pairs: Dataset, chosen: numpy.ndarray, rejected: numpy.ndarray) -> None:
        columns = [name for name in pairs.column_names if not name.endswith("_ids")]
        with open(Path(self.config.output_dir, "scores.jsonl"), "w", encoding="utf-8") as file:
            for row, good, bad in zip(pairs.select_columns(columns), chosen.tolist(), rejected.tolist(), strict=True):
                record = {**row, "chosen_score": good, "rejected_score": bad}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _prompts_and_answers(pairs: Dataset, side: str) -> tuple[list, list]:
    """A side's texts as prompts and answers; of conversations without prompt, the first message is one."""
    texts = pairs[side][:]
    if "prompt" in pairs.column_names:
        return pairs["prompt"][:], texts
    if isinstance(texts[0], str):
        return [""] * len(texts), texts
    return [text[:1] for text in texts], [text[1:] for text in texts]


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


def judgement_figures(margins: numpy.ndarray) -> dict[str, Callable]:
    """Histogram of margins and calibration plot, by file name."""

    def calibration(figure) -> None:
        figures.calibration(figure, *both_orders(margins), bins=BINS)
        axes = figure.axes[0]
        axes.set(xlabel="predicted P(first > second)", ylabel="observed frequency; share of pairs")
        axes.lines[-1].set_label("observed")
        axes.legend(frameon=False, loc="upper left")

    return {"margins.png": lambda figure: _histogram(figure, margins), "calibration.png": calibration}


def _histogram(figure, margins: numpy.ndarray) -> None:
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    edges = numpy.histogram_bin_edges(margins, bins=40)
    for name, chosen, color in (("right", margins > 0, "#2171b5"), ("wrong", margins <= 0, "#d94801")):
        axes.hist(margins[chosen], bins=edges, color=color, label=f"{name}: {chosen.mean():.1%} of {len(margins):,}")
    axes.axvline(0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="score of the chosen less score of the rejected text", ylabel="pairs")
    axes.legend(frameon=False)
    axes.spines[["right", "top"]].set_visible(False)


def accuracy_by_gap(margins: numpy.ndarray, gaps: numpy.ndarray) -> Callable:
    """Accuracy over how far apart people's ratings are, in quarters of the pairs."""
    edges = numpy.unique(numpy.quantile(gaps, [0, 0.25, 0.5, 0.75, 1]))
    inner = edges[1:-1]
    places = numpy.searchsorted(inner, gaps, side="right")
    names = {p: f"{gaps[places == p].min():.1f} to {gaps[places == p].max():.1f}" for p in numpy.unique(places)}
    accuracy = {name: float((margins[places == p] > 0).mean()) for p, name in names.items()}
    counts = {name: int((places == p).sum()) for p, name in names.items()}

    def draw(figure) -> None:
        figures.bars(figure, accuracy, "accuracy", counts)
        figure.axes[0].set(xlabel="difference of the ratings")

    return draw


# ---- text -----------------------------------------------------------------------------------------------------------


def _worst_pairs(pairs: Dataset, margins: numpy.ndarray, count: int) -> str:
    rows = []
    for i in numpy.argsort(margins)[:count].tolist():
        cells = (_in_cell(pairs[i][side]) for side in ("chosen", "rejected"))
        rows.append(f"| {margins[i]:.2f} | {' | '.join(cells)} |")
    head = "The test pairs where the model errs most:\n\n| margin | preferred by people | rejected |\n|---:|---|---|"
    return "\n".join([head, *rows]) if rows else ""


def _in_cell(text: str | list, most: int = 300) -> str:
    if not isinstance(text, str):
        text = " ".join(f"**{message['role']}** {message['content']}" for message in text)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[:most] + " ..."


def _usage(config: RewardModelConfig) -> str:
    name = Path(config.output_dir).name
    if config.peft is not None:
        return (
            "from peft import AutoPeftModelForSequenceClassification\n\n"
            f'model = AutoPeftModelForSequenceClassification.from_pretrained("{name}", num_labels=1)'
        )
    return (
        "from transformers import pipeline\n\n"
        f'score = pipeline("text-classification", "{name}", function_to_apply="none", trust_remote_code=True)'
    )
