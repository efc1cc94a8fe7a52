"""One page on what alignment has changed: samples of the model before and after, the best of several before, rewards,
an independent judge, KL, perplexity, variety."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
from scipy import stats
from transformers import AutoModelForCausalLM

from hf_llm.data.tasks import load_task
from hf_llm.rlhf.methods import RewardSection
from hf_llm.rlhf.preferences import PreferenceData, load_split, prompt_ids
from hf_llm.rlhf.rewards import RewardModel
from hf_llm.training.launching import set_cpu_threads
from hf_llm.training.opening import ModelSection, open_model, open_tokenizer
from hf_llm.training.settings import build_section, describe, load_settings
from hf_llm.tuning.conversations import is_conversation
from hf_llm.tuning.job import describe_dataset

from .comparison_page import table_text, write_page
from .judging import Judge, distinct_n, log_probs, sample_completions


@dataclass
class ComparisonConfig:
    """
    Attributes:
        output_dir: where the page, its pictures, `metrics.json` and `completions.jsonl` go.
        before, after: a decoder, and what it became: a checkpoint, or `before`'s with an `adapter`.
        reward_model: folder of the reward model that `after` was trained on; or
        rewards: what it was trained on, models and functions with weights, as in the configuration of that run.
        judge: a labelled data set (columns `text` and `label`, two classes), as `load_task` takes it, that an
            independent classifier learns from; its accuracy on the test split is reported.
        prompts: whose test split is completed.
        max_new_tokens: of each completion, for all alike.
        best_of: completions of `before` of which the reward model chooses one, to compare with.
        shown: prompts whose completions the page shows.
        pictures: caption -> PNG file of an earlier stage, shown on the page.
        batch_size: prompts at a time.
    """

    output_dir: str
    before: ModelSection
    after: ModelSection
    judge: Any
    prompts: PreferenceData
    reward_model: str | None = None
    rewards: list | None = None
    max_new_tokens: int = 24
    best_of: int = 4
    shown: int = 8
    pictures: dict = field(default_factory=dict)
    batch_size: int = 64
    seed: int = 0
    cpu_threads: int | None = None
    imports: str | list[str] = field(default_factory=list)

    def __post_init__(self):
        for name, least in (("max_new_tokens", 1), ("best_of", 2), ("shown", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")
        if (self.reward_model is None) == (not self.rewards):
            raise ValueError("give either reward_model, or rewards, a list of models and functions as PPO has them")
        self.reward_sections()

    def reward_sections(self) -> list[RewardSection]:
        entries = [{"model": self.reward_model}] if self.reward_model else self.rewards
        return [build_section(RewardSection, entry, f"rewards[{i}]") for i, entry in enumerate(entries)]

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class Samples:
    """Completions of one model, one for each prompt.

    Attributes:
        ids, texts: of each, up to its end token.
        log_probs, before_log_probs: by the model itself and by the one before, nats, (prompts,).
        rewards: (prompts,).
        positive: whether the judge finds the text positive, (prompts,).
    """

    ids: list[list[int]]
    texts: list[str]
    log_probs: list[float]
    before_log_probs: list[float]
    rewards: list[float]
    positive: numpy.ndarray

    def figures(self, end: int) -> dict[str, float]:
        """Means over prompts, with standard errors where they are means of single numbers."""
        lengths = [len(row) for row in self.ids]
        kl = numpy.subtract(self.log_probs, self.before_log_probs)
        return {
            "reward": float(numpy.mean(self.rewards)),
            "reward_error": _error(self.rewards),
            "judged_positive": float(self.positive.mean()),
            "judged_positive_error": _error(self.positive),
            "kl": float(kl.mean()),
            "kl_error": _error(kl),
            "perplexity_before": float(numpy.exp(-sum(self.before_log_probs) / sum(lengths))),
            "distinct_2": distinct_n(self.texts),
            "tokens": float(numpy.mean(lengths)),
            "ended": float(numpy.mean([row[-1] == end for row in self.ids])),
        }


def _error(values) -> float:
    """Standard error of the mean; 0 of a single value."""
    return float(stats.sem(values)) if len(values) > 1 else 0.0


class Comparison:
    """A job of `hf_llm.training.command` that trains nothing but the judge."""

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] = ()) -> ComparisonConfig:
        """The comparison that a YAML file and `--key value` overrides describe. Raises ValueError."""
        return build_section(ComparisonConfig, load_settings(path, overrides))

    @classmethod
    def describe(cls) -> Iterator[str]:
        """Every key of a configuration."""
        return describe(ComparisonConfig)

    def __init__(self, config: ComparisonConfig, card_template: Path | None = None):
        self.config = config

    def prepare(self) -> None:
        """Open everything, and teach the judge.

        Raises:
            ValueError: prompts that are conversations (the judge reads plain text), a judge's data without two
                classes, or whatever cannot be opened.
        """
        config = self.config
        set_cpu_threads(config.cpu_threads)
        if missing := [path for path in config.pictures.values() if not Path(path).is_file()]:
            raise ValueError(f"pictures: there is no file {missing[0]!r}")
        rows = load_split(config.prompts, "prompts", "test")
        self.prompts = rows["prompt"][:]
        if is_conversation(self.prompts[0]):
            raise ValueError("prompts: the judge reads plain text, and these are conversations")
        self.judge, self.judged = self.teach_judge()
        self.tokenizer = open_tokenizer(config.before)
        self.end = self.tokenizer.eos_token_id
        self.prompt_ids = prompt_ids(self.tokenizer, self.prompts)
        self.columns = {name: rows[name][:] for name in rows.column_names if name != "prompt"}
        self.rewards = []
        for section in config.reward_sections():
            reward, tokenizer = section.resolve(rows.column_names)
            if tokenizer is not None:
                reward = RewardModel(reward, tokenizer, config.batch_size)
            self.rewards.append((section.weight, reward))

    def teach_judge(self) -> tuple[Judge, dict[str, float]]:
        train, test = (load_task(self.config.judge, split) for split in ("train", "test"))
        for column in ("text", "label"):
            if column not in train.column_names:
                raise ValueError(f"judge: the data has no column {column!r}: its columns are {train.column_names}")
        texts, labels = train["text"][:], train["label"][:]
        if set(labels) != {0, 1}:
            raise ValueError(f"judge: labels must be 0 and 1, the wanted class; here they are {sorted(set(labels))}")
        judge = Judge(texts, labels)
        held_out = test["text"][:], test["label"][:]
        majority = max(numpy.mean(held_out[1]), 1 - numpy.mean(held_out[1]))
        facts = {"accuracy": judge.accuracy(*held_out), "majority": float(majority)}
        return judge, {**facts, "train_texts": len(texts), "test_texts": len(held_out[0])}

    def run(self) -> None:
        """Compare, write the page and the files beside it, and print the table."""
        self.prepare()
        results, folder = self.compare(), self.config.output_dir
        print(table_text(results))
        print(f"\n  {folder}/index.html         the page\n  {folder}/metrics.json       the figures")
        print(f"  {folder}/completions.jsonl  all completions", flush=True)

    def compare(self) -> dict:
        """All figures; writes the page."""
        config, count = self.config, self.config.best_of
        sections = (config.before, config.after)
        before, after = (open_model(s, AutoModelForCausalLM, self.tokenizer).eval() for s in sections)
        drawn = self.sample(before, num_samples=1 + count)
        first, pool = [rows[0] for rows in drawn], [rows[1:] for rows in drawn]
        flat = [ids for rows in pool for ids in rows]
        chosen = numpy.reshape(self.reward(self.decode(flat), each=count), (-1, count)).argmax(1)
        samples = {
            "before": self.judged_samples(before, before, first),
            f"best of {count} before": self.judged_samples(
                before, before, [rows[i] for rows, i in zip(pool, chosen, strict=True)]
            ),
            "after": self.judged_samples(after, before, [rows[0] for rows in self.sample(after, num_samples=1)]),
        }
        found = {name: taken.figures(self.end) for name, taken in samples.items()}
        # its samples are the model's own; the KL of choosing is known (arXiv 2009.01325, appendix G.3)
        found[f"best of {count} before"] |= {"kl": float(numpy.log(count) - (count - 1) / count), "kl_error": 0.0}
        results = {
            "prompts": len(self.prompts),
            "judge": {**self.judged, "data": describe_dataset(config.judge)},
            "models": found,
            "equal_length": self.at_equal_length(samples[f"best of {count} before"], samples["after"]),
        }
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = json.dumps({**results, "config": asdict(config)}, indent=2)
        (folder / "metrics.json").write_text(metrics, encoding="utf-8")
        with open(folder / "completions.jsonl", "w", encoding="utf-8") as file:
            for i, prompt in enumerate(self.prompts):
                row = {name: {"text": s.texts[i], "reward": s.rewards[i]} for name, s in samples.items()}
                file.write(json.dumps({"prompt": prompt, **row}, ensure_ascii=False) + "\n")
        write_page(folder, results, self.prompts, samples, config.shown, config.pictures)
        return results

    def sample(self, model, num_samples: int) -> list[list[list[int]]]:
        config = self.config
        return sample_completions(
            model, self.tokenizer, self.prompt_ids, config.max_new_tokens, num_samples, config.batch_size, config.seed
        )

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def judged_samples(self, model, before, ids: list[list[int]]) -> Samples:
        texts = self.decode(ids)
        own, earlier = (log_probs(m, self.prompt_ids, ids, self.config.batch_size) for m in (model, before))
        return Samples(ids, texts, own, earlier, *self.rate(texts))

    def rate(self, texts: list[str]) -> tuple[list[float], numpy.ndarray]:
        whole = [prompt + text for prompt, text in zip(self.prompts, texts, strict=True)]
        return self.reward(texts), self.judge(whole)

    def reward(self, texts: list[str], each: int = 1) -> list[float]:
        """The weighted sum of rewards of `each` completions of every prompt. Raises ValueError where one has none."""
        columns = {"prompts": self.prompts, **self.columns}
        columns = {name: [value for value in values for _ in range(each)] for name, values in columns.items()}
        totals = numpy.zeros(len(texts))
        for weight, reward in self.rewards:
            totals += weight * numpy.array(reward(completions=texts, **columns), float)
        if not numpy.isfinite(totals).all():
            raise ValueError(f"rewards: completion {int(numpy.isfinite(totals).argmin())} has none")
        return totals.tolist()

    def at_equal_length(self, best: Samples, after: Samples) -> dict[str, dict[str, float]]:
        """Both cut, for each prompt, to the tokens of the shorter one: neither gains by writing more."""
        lengths = [min(len(a), len(b)) for a, b in zip(best.ids, after.ids, strict=True)]
        found = {}
        for name, samples in (("best", best), ("after", after)):
            texts = self.decode([ids[:n] for ids, n in zip(samples.ids, lengths, strict=True)])
            rewards, positive = self.rate(texts)
            found[name] = {"reward": float(numpy.mean(rewards)), "judged_positive": float(positive.mean())}
        return found
