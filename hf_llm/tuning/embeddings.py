"""Sentence embeddings: contrastive training on pairs of texts that belong together, saved for sentence-transformers.

Each anchor must find its own positive among all of its batch: cross-entropy over scaled cosine similarities (InfoNCE,
arXiv:1807.03748; sentence-transformers calls it MultipleNegativesRankingLoss).
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_llm.data.tasks import SPLITS, load_task
from hf_llm.training.runs import run_directory, set_cpu_threads
from hf_llm.training.settings import suggestion

from .adapters import has_virtual_tokens
from .config import TuningConfig, load_tuning_config, training_arguments
from .encoding import Encoder, check_tokens, report_cut
from .finetuning import describe_dataset
from .labels import check_columns, check_texts
from .models import is_encoder_decoder, open_config, open_tokenizer
from .pairs import take
from .report import Results
from .running import TuningMixin, prepare_model, run


# our name -> which hidden states make the embedding; (hidden (batch, seq, size), mask (batch, seq)) -> (batch, size)
POOLINGS = {
    "mean": lambda hidden, mask: (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "cls": lambda hidden, mask: hidden[:, 0],
    "lasttoken": lambda hidden, mask: hidden[torch.arange(len(hidden)), mask.sum(1).long() - 1],
}
SIDES = ("anchor", "positive")
# adapters that `PeftModel` opens, but transformers, by which sentence-transformers opens them, does not
NOT_INJECTED = ("adalora", "vera", "randlora")
MANAGED = {
    "remove_unused_columns": "batches hold exactly what the model takes",
    "prediction_loss_only": "evaluation reports the loss, retrieval is measured at the end",
    "label_names": "the pairs are the labels",
}


@dataclass
class PairsSection:
    """
    Attributes:
        dataset: anything that `hf_llm.data.tasks.load_task` takes.
        anchor, positive: columns of the texts that belong together.
        max_length: tokens of a text; default: what the model can read, at most 512.
        max_train_samples, max_validation_samples, max_test_samples: take that many examples of a split, drawn once.
    """

    dataset: Any
    anchor: str = "anchor"
    positive: str = "positive"
    max_length: int | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None


@dataclass
class EmbeddingSection:
    """
    Attributes:
        pooling: which hidden states make the embedding: "mean", "cls" (the first token) or "lasttoken".
        scale: of the cosine similarities in the loss, the inverse of its temperature.
    """

    pooling: str = "mean"
    scale: float = 20.0

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"embedding.pooling = {self.pooling!r} is unknown{suggestion(self.pooling, POOLINGS)}")
        if not self.scale > 0:
            raise ValueError(f"embedding.scale = {self.scale} must be above 0")


@dataclass(kw_only=True)
class EmbeddingsConfig(TuningConfig):
    """A run of `recipes/embeddings.py`: pairs, and what an embedding is."""

    data: PairsSection
    embedding: EmbeddingSection = field(default_factory=EmbeddingSection)

    def __post_init__(self):
        method = None if self.peft is None else self.peft.get("method")
        if method in NOT_INJECTED or (self.peft is not None and has_virtual_tokens(self.peft)):
            raise ValueError(f"peft.method = {method!r}: sentence-transformers opens no such adapters; use lora")


def load_embeddings_config(path: str | Path, overrides: list[str] = ()) -> EmbeddingsConfig:
    """The run that a YAML file and `--section.field value` overrides describe. ValueError names what is wrong."""
    return load_tuning_config(EmbeddingsConfig, TrainingArguments, path, overrides, MANAGED)


def train_embeddings(config: EmbeddingsConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train, evaluate retrieval, save and report; go on from a checkpoint where there is one.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with configuration, data or checkpoint, before training starts.
    """
    set_cpu_threads(config.cpu_threads)
    if is_encoder_decoder(config.model):
        raise ValueError(f"model.path = {config.model.path!r} is an encoder-decoder; take an encoder or a decoder")
    args = training_arguments(
        config, TrainingArguments, remove_unused_columns=False, label_names=[], prediction_loss_only=True
    )
    with run_directory(args):
        return _Run(config, args).run(card_template)


def embed(model: PreTrainedModel, batch: dict, pooling: str) -> torch.Tensor:
    """Embeddings of length 1, (batch, size) float32, of a padded batch (`input_ids`, `attention_mask`)."""
    hidden = model(**batch).last_hidden_state.float()
    return functional.normalize(POOLINGS[pooling](hidden, batch["attention_mask"]), dim=-1)


def contrastive_loss(anchors: torch.Tensor, positives: torch.Tensor, scale: float) -> torch.Tensor:
    """InfoNCE of embeddings (batch, size) of length 1, pair by pair."""
    scores = scale * anchors @ positives.T  # (batch, batch)
    return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def retrieval(anchors: torch.Tensor, positives: torch.Tensor) -> dict[str, float]:
    """How well each anchor finds its positive among all: accuracy of the first, mean reciprocal rank of ten."""
    scores = anchors @ positives.T
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)
    reciprocal = torch.where(ranks <= 10, 1 / ranks, 0.0)
    return {"accuracy_at_1": (ranks == 1).float().mean().item(), "mrr_at_10": reciprocal.mean().item()}


class ContrastiveTrainer(Trainer):
    """A batch is `{"anchor": ..., "positive": ...}`, token ids of each; negatives are those of the same micro-batch of
    the same process, in evaluation, too, whose loss therefore grows with the size of its batches."""

    def __init__(self, *args, embedding: EmbeddingSection, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the pairs of its own micro-batch
        self.embedding = embedding

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        anchors, positives = (embed(model, inputs[side], self.embedding.pooling) for side in SIDES)
        loss = contrastive_loss(anchors, positives, self.embedding.scale)
        return (loss, {"anchor": anchors, "positive": positives}) if return_outputs else loss


class EmbeddingTrainer(TuningMixin, ContrastiveTrainer):
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


@dataclass
class TextPairCollator:
    """A batch of each side: `input_ids` and `attention_mask`, both (batch, longest) int64."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, features: Sequence[dict]) -> dict[str, dict[str, torch.Tensor]]:
        return {side: self.pad([feature[side] for feature in features]) for side in SIDES}

    def pad(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}


class _Run:
    """The parts of one run, made in order: texts, tokenizer, token ids, model, trainer."""

    def __init__(self, config: EmbeddingsConfig, args: TrainingArguments):
        self.config, self.args = config, args
        model_config = open_config(config.model, AutoModel)
        with args.main_process_first():  # the first process fills the caches that the others read
            self.texts = {split: self.load(split) for split in SPLITS}
            self.tokenizer = open_tokenizer(config.model)
            self.tokenizer.chat_template = None  # sentence-transformers would make a conversation of each text
            self.encoder = Encoder.of(self.tokenizer, model_config, config.data.max_length)
            self.features = {split: self.encode(texts) for split, texts in self.texts.items()}
            for split, features in self.features.items():
                for side in SIDES:
                    check_tokens(features.select_columns(side), split, side)
        self.collator = TextPairCollator(self.tokenizer)
        self.notes = [report_cut(f["cut"], split, self.encoder.max_length) for split, f in self.features.items()]
        model = prepare_model(config, AutoModel, self.tokenizer, args, len(self.texts["train"]))
        self.trainer = EmbeddingTrainer(
            model=model,
            args=args,
            train_dataset=self.features["train"],
            eval_dataset=self.features["validation"],
            data_collator=self.collator,
            processing_class=self.tokenizer,
            embedding=config.embedding,
        )
        self.before = self.measure()

    def run(self, card_template: Path | None) -> signal.Signals | None:
        facts = {"fingerprint": [texts._fingerprint for texts in self.texts.values()]}
        return run(self.trainer, self.config, self.evaluate, card_template, facts)

    def load(self, split: str) -> Dataset:
        """Columns `anchor` and `positive` of a split."""
        data = self.config.data
        dataset = load_task(data.dataset, split)
        check_columns({split: dataset}, (data.anchor, data.positive))
        for column in (data.anchor, data.positive):
            check_texts(dataset, column, split)
        dataset = dataset.select_columns([data.anchor, data.positive])
        dataset = dataset.rename_columns({getattr(data, side): side for side in SIDES})
        return take(dataset, getattr(data, f"max_{split}_samples"), split)

    def encode(self, texts: Dataset) -> Dataset:
        def encode_batch(batch: dict) -> dict:
            encoded = {side: self.encoder(batch[side]) for side in SIDES}
            cut = [any(pair) for pair in zip(*(self.encoder.was_cut(encoded[s], batch[s]) for s in SIDES))]
            return {**{side: e["input_ids"] for side, e in encoded.items()}, "cut": cut}

        return texts.map(encode_batch, batched=True, desc="Tokenizing")

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Retrieval among the pairs of the test split."""
        model, test = self.trainer.accelerator.unwrap_model(self.trainer.model), self.features["test"]
        was_training = model.training
        model.eval()
        sides, size = [], self.args.per_device_eval_batch_size
        for side in SIDES:
            batches = (self.collator.pad(test[start : start + size][side]) for start in range(0, len(test), size))
            embedded = [embed(model, self.trainer._prepare_inputs(b), self.config.embedding.pooling) for b in batches]
            sides.append(torch.cat(embedded).cpu())
        model.train(was_training)
        return retrieval(*sides)

    def evaluate(self) -> Results:
        if self.args.should_save:
            save_for_sentence_transformers(
                Path(self.config.output_dir), self.config.embedding.pooling, self.encoder.max_length
            )
        return Results(
            task="sentence-similarity",
            dataset=describe_dataset(self.config.data.dataset),
            metrics=self.measure(),
            rows={split: len(texts) for split, texts in self.texts.items()},
            usage=_USAGE.format(path=Path(self.config.output_dir).name),
            baselines={
                "before training": self.before,
                "TF-IDF of words": retrieval(*tfidf(self.texts["train"], self.texts["test"])),
            },
            notes=[
                f"Each of {len(self.texts['test']):,} test anchors looks for its positive among all of them.",
                *filter(None, self.notes),
            ],
            files={"modules.json": "the same model for sentence-transformers"},
        )


_USAGE = """import hf_llm
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
embeddings = model.encode(["A man is eating food.", "A man eats a meal."])
print(model.similarity(embeddings, embeddings))"""


def save_for_sentence_transformers(folder: Path, pooling: str, max_length: int) -> None:
    """Add to a saved model what sentence-transformers reads beside it: pooling, length, normalisation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=max_length)
    pool = Pooling(transformer.get_embedding_dimension(), pooling)
    SentenceTransformer(modules=[transformer, pool, Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )


def tfidf(train: Dataset, test: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """TF-IDF vectors of the test pairs, words of both sides weighted by the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([text for side in SIDES for text in train[side]])
    anchors, positives = (vectorizer.transform(test[side][:]).toarray() for side in SIDES)
    return torch.from_numpy(anchors), torch.from_numpy(positives)
