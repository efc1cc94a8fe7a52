"""A needle in a haystack: a tiny decoder is trained to find one marked token among random ones, then asked at lengths
far beyond those that it was trained on.

A haystack is random tokens; somewhere in it `MARK` is followed by the needle, any token at all, and wherever `ASK`
stands behind it, the needle is to be named. To find it, a layer must see which token follows `MARK`, and a later one
must fetch that token from any distance. What is measured is how far the second reaches.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import torch
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel, get_cosine_schedule_with_warmup

from hf_llm.models.configuration import LLMDecoderConfig
from hf_llm.models.decoder import LLMDecoderForCausalLM
from hf_llm.training.report import draw_figures
from hf_llm.training.settings import build_section, check_keys


PAD, MARK, ASK, FIRST = range(4)  # ids; words begin with FIRST
QUESTIONS = 4  # of each training row


@dataclass
class NeedleConfig:
    """
    Attributes:
        model: fields of the decoder's configuration.
        vocab_size: of the haystack.
        lengths: of training rows, the shortest first. Each step draws one; they come in one after the other during
            the first half of the run, for in a long haystack alone nothing is learned.
        batch_tokens: tokens of a step.
        steps, learning_rate: of AdamW, with warm-up and cosine decay.
        test_lengths, depths: of the haystacks that the model is asked about, and where in them the needle lies (0 at
            the beginning, 1 at the end).
        trials: haystacks for each length and depth.
        seed: of weights and haystacks.
    """

    model: dict = field(default_factory=dict)
    vocab_size: int = 64
    lengths: list[int] = field(default_factory=lambda: [12, 24, 48, 96, 192, 384])
    batch_tokens: int = 1536
    steps: int = 900
    learning_rate: float = 3e-3
    test_lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192, 16384, 32768])
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    trials: int = 4
    seed: int = 0

    def __post_init__(self):
        if self.vocab_size < FIRST + 2:
            raise ValueError(f"needle.vocab_size = {self.vocab_size}: must be at least {FIRST + 2}")
        for name, smallest in (("lengths", 2 * QUESTIONS + 4), ("test_lengths", 4)):
            values = getattr(self, name)
            if not values or min(values) < smallest:
                raise ValueError(f"needle.{name} = {values}: needs lengths of at least {smallest}")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"needle.depths = {self.depths}: must be between 0 and 1")


def haystacks(generator: np.random.Generator, rows: int, length: int, vocab_size: int, depth: float | None = None):
    """
    Rows of random tokens with a needle in each.

    Args:
        depth: of the needle, 0 to 1, and the only question is the last token; None draws places for needle and
            `QUESTIONS` questions.

    Returns:
        ids (rows, length) int64, and labels of the same shape: the needle where `ASK` stands behind it, else -100.
    """
    ids = generator.integers(FIRST, vocab_size, (rows, length))
    labels = np.full((rows, length), -100)
    for row, label in zip(ids, labels, strict=True):
        place = round(depth * (length - 3)) if depth is not None else generator.integers(length // 2)
        needle = row[place + 1]
        row[place] = MARK
        if depth is None:
            asked = generator.choice(np.arange(place + 2, length), QUESTIONS, replace=False)
        else:
            asked = [length - 1]
        row[asked], label[asked] = ASK, needle
    return torch.from_numpy(ids), torch.from_numpy(labels)


def train_finder(config: NeedleConfig, say: Callable[[str], None] = print) -> PreTrainedModel:
    """A decoder that has been trained to find needles.

    Raises:
        ValueError: unknown fields of the model, or values that contradict each other.
    """
    torch.manual_seed(config.seed)
    generator = np.random.default_rng(config.seed)
    check_keys(config.model, [f.name for f in dataclasses.fields(LLMDecoderConfig) if f.init], "needle.model")
    fields = {"vocab_size": config.vocab_size, "max_position_embeddings": max(config.lengths), **config.model}
    model = LLMDecoderForCausalLM(LLMDecoderConfig(**fields))
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.steps // 20, config.steps)
    model.train()
    for step in range(1, config.steps + 1):
        used = min(1 + 2 * step * len(config.lengths) // config.steps, len(config.lengths))
        length = int(generator.choice(config.lengths[:used]))
        ids, labels = haystacks(generator, max(config.batch_tokens // length, 1), length, config.vocab_size)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        asked = labels >= 0
        loss = F.cross_entropy(model.lm_head(hidden[asked]).float(), labels[asked])  # named at `ASK`, so not shifted
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % max(config.steps // 10, 1) == 0:
            say(f"step {step}: loss {loss.item():.4f}")
    return model.eval()


def finder(config: NeedleConfig, folder: Path, say: Callable[[str], None] = print) -> PreTrainedModel:
    """The model of `train_finder`, kept in `folder`: trained only if the one there was trained otherwise."""
    asked = ("test_lengths", "depths", "trials")
    facts = {name: value for name, value in dataclasses.asdict(config).items() if name not in asked}
    note = folder / "trained_with.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == facts:
        return LLMDecoderForCausalLM.from_pretrained(folder).eval()
    model = train_finder(config, say)
    (folder / "needle.json").unlink(missing_ok=True)  # of another model
    model.save_pretrained(folder)
    note.write_text(json.dumps(facts), encoding="utf-8")
    return model


@torch.no_grad()
def last_logits(model: PreTrainedModel, ids: torch.Tensor, chunk: int = 2048) -> torch.Tensor:
    """Logits (rows, vocabulary) behind rows of any length, read `chunk` tokens at a time into a cache."""
    cache = DynamicCache(config=model.config)
    for part in ids.split(chunk, dim=1):
        output = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1]


def recall(
    model: PreTrainedModel, config: NeedleConfig, folder: Path, say: Callable[[str], None] = print
) -> np.ndarray:
    """Share of needles that are named, (depths, test lengths). Each is kept in `folder` as `needle.json` as soon as it
    is known, and not measured again."""
    kept = folder / "needle.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for length in config.test_lengths:
        for depth in config.depths:
            name = _name(length, depth, config.trials)
            if name in known:
                continue
            generator = np.random.default_rng((config.seed, length, round(1000 * depth)))
            ids, labels = haystacks(generator, config.trials, length, config.vocab_size, depth)
            right = [last_logits(model, row[None])[0].argmax() == label[-1] for row, label in zip(ids, labels)]
            known[name] = float(torch.stack(right).double().mean())
            kept.write_text(json.dumps(known, indent=2), encoding="utf-8")
            say(f"{name}: {known[name]:.0%} found")
    return np.array([[known[_name(n, depth, config.trials)] for n in config.test_lengths] for depth in config.depths])


def _name(length: int, depth: float, trials: int) -> str:
    return f"{length} tokens, depth {depth:g}, {trials} trials"


def run_study(settings: dict, folder: Path) -> str:
    """Train, ask, and write `needle.json` and `needle.png`; returns the shares that were found as a table.

    Args:
        settings: with a section `needle`, the fields of [`NeedleConfig`].
    """
    config = build_section(NeedleConfig, settings.get("needle", {}), "needle")
    found = recall(finder(config, folder), config, folder)
    draw_figures(folder, {"needle.png": functools.partial(draw, found=found, config=config)})
    columns = [f"{length:,}" for length in config.test_lengths]
    return pandas.DataFrame(found, config.depths, columns).map("{:.0%}".format).rename_axis("depth").to_string()


def draw(figure, found: np.ndarray, config: NeedleConfig) -> None:
    """A heat map of `recall`."""
    figure.set_size_inches(1.6 + 0.95 * len(config.test_lengths), 1.6 + 0.5 * len(config.depths))
    axes = figure.add_subplot()
    image = axes.imshow(found, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(found):
        axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(config.test_lengths)), [f"{length:,}" for length in config.test_lengths])
    axes.set_yticks(range(len(config.depths)), [f"{depth:.0%}" for depth in config.depths])
    axes.set(xlabel="tokens", ylabel="depth of the needle")
    trials = f"{config.trials} trial{'s' if config.trials > 1 else ''}"
    axes.set_title(f"Needles found, {trials} each; trained on at most {max(config.lengths):,} tokens")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="found")
