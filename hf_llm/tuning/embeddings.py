"""Sentence embeddings: contrastive training on pairs of texts that belong together, saved for sentence-transformers.

Pooling, loss and the saved layout are sentence-transformers' own. Each anchor must find its own positive among all of
its batch: cross-entropy over scaled cosine similarities (InfoNCE, arXiv:1807.03748). The trainer is the one of all
jobs, around the bare transformer, for its checkpoints, exact resumption and adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_llm.training.opening import is_encoder_decoder
from hf_llm.training.report import Results
from hf_llm.training.settings import suggestion

from .adapters import has_virtual_tokens
from .examples import Encoder
from .finetuning import Finetuning, LabelledData
from .job import TuningConfig, TuningMixin, TuningRun
from .task import Task


POOLINGS = ("mean", "cls", "lasttoken")
SIDES = ("anchor", "positive")
# adapters that `PeftModel` opens, but transformers, by which sentence-transformers opens them, does not
NOT_INJECTED = ("adalora", "vera", "randlora")


@dataclass(kw_only=True)
class EmbeddingData(LabelledData):
    """
    Attributes:
        anchor, positive: columns of the texts that belong together.
    """

    anchor: str = "anchor"
    positive: str = "positive"
    sides: ClassVar[tuple[str, ...]] = SIDES


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
    """A run of `recipes/embeddings.py`.

    Attributes:
        data: pairs of texts.
        embedding: what an embedding is.
    """

    data: EmbeddingData
    embedding: EmbeddingSection = field(default_factory=EmbeddingSection)

    def __post_init__(self):
        super().__post_init__()
        if self.peft is not None and (self.peft["method"] in NOT_INJECTED or has_virtual_tokens(self.peft)):
            raise ValueError(
                f"peft.method = {self.peft['method']!r}: sentence-transformers opens no such adapters; use lora"
            )


def embedding_head(size: int, pooling: str) -> nn.Sequential:
    """Modules of sentence-transformers that make embeddings of hidden states of `size`: pooled, of length 1."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    return nn.Sequential(Pooling(size, pooling), Normalize())


def embed(model: PreTrainedModel, batch: dict, head: nn.Module) -> torch.Tensor:
    """Embeddings of length 1, (batch, size) float32, of a padded batch (`input_ids`, `attention_mask`)."""
    hidden = model(**batch).last_hidden_state.float()
    return head({"token_embeddings": hidden, "attention_mask": batch["attention_mask"]})["sentence_embedding"]


class ContrastiveTrainer(Trainer):
    """A batch is `{"anchor": ..., "positive": ...}`, token ids of each; negatives are those of the same micro-batch of
    the same process, in evaluation, too, whose loss therefore grows with the size of its batches."""

    def __init__(self, *args, embedding: EmbeddingSection, **kwargs):
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the pairs of its own micro-batch
        self.head = embedding_head(self.model.config.hidden_size, embedding.pooling)
        self.loss = MultipleNegativesRankingLoss(model=None, scale=embedding.scale)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        embeddings = [embed(model, inputs[side], self.head) for side in SIDES]
        loss = self.loss.compute_loss_from_embeddings(embeddings, None)
        return (loss, dict(zip(SIDES, embeddings))) if return_outputs else loss


class EmbeddingTrainer(TuningMixin, ContrastiveTrainer):
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Embeddings of both sides in the place of logits, and labels that only count the rows."""
        with torch.no_grad():
            loss, embeddings = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss.detach(), tuple(embeddings.values()), torch.zeros_like(embeddings["anchor"][:, 0])


@dataclass
class TextPairCollator:
    """A batch of each side: `input_ids` and `attention_mask`, both (batch, longest) int64."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, features: Sequence[dict]) -> dict[str, dict[str, torch.Tensor]]:
        padded = {
            side: self.tokenizer.pad({"input_ids": [f[side] for f in features]}, return_tensors="pt") for side in SIDES
        }
        return {side: {name: p[name] for name in ("input_ids", "attention_mask")} for side, p in padded.items()}


class SentencePairs(Task):
    """`anchor` and `positive`: each anchor looks for its positive among all; a record has its rank."""

    hub_name: ClassVar[str] = "sentence-similarity"
    auto_class: ClassVar[type] = AutoModel
    columns: ClassVar[tuple[str, ...]] = SIDES
    token_columns: ClassVar[tuple[str, ...]] = SIDES
    label_names: ClassVar[list[str]] = []
    collator: ClassVar[type] = TextPairCollator
    predicts: ClassVar[str] = "rank"

    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        encoded = {side: encoder(batch[side]) for side in SIDES}
        cut = zip(*(encoder.was_cut(encoded[side], batch[side]) for side in SIDES))
        return {**{side: e["input_ids"] for side, e in encoded.items()}, "cut": [any(pair) for pair in cut]}

    def shrink(self, logits, labels):
        return logits

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        rows = zip(*(examples[side] for side in SIDES), ranks(*logits))
        return [{"anchor": anchor, "positive": positive, "rank": rank} for anchor, positive, rank in rows]

    def score(self, records: list[dict]) -> dict[str, float]:
        """Accuracy of the first, mean reciprocal rank of ten."""
        found = numpy.array([record["rank"] for record in records])
        reciprocal = numpy.where(found <= 10, 1 / found, 0.0)
        return {"accuracy_at_1": float((found == 1).mean()), "mrr_at_10": float(reciprocal.mean())}

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True).fit([text for side in SIDES for text in train[side]])
        return {"TF-IDF of words": ranks(*(vectorizer.transform(examples[side][:]).toarray() for side in SIDES))}


def ranks(anchors: numpy.ndarray, positives: numpy.ndarray) -> list[int]:
    """The rank, from 1, of each anchor's own positive among all, both (examples, size) of length 1."""
    scores = anchors @ positives.T
    return (1 + (scores > scores.diagonal()[:, None]).sum(1)).tolist()


class Embeddings(Finetuning):
    """Trains on pairs, measures retrieval before and after, saves for sentence-transformers and reports."""

    config_class = EmbeddingsConfig
    managed = {**Finetuning.managed, "label_names": "the pairs are the labels"}
    defaults = {**TuningRun.defaults, "remove_unused_columns": False}

    def make_task(self) -> Task:
        return SentencePairs()

    def make_arguments(self) -> TrainingArguments:
        if is_encoder_decoder(self.config.model):
            path = self.config.model.path
            raise ValueError(f"model.path = {path!r} is an encoder-decoder; take an encoder or a decoder")
        return super().make_arguments()

    def make_trainer(self, model: PreTrainedModel) -> Trainer:
        self.tokenizer.chat_template = None  # sentence-transformers would make a conversation of each text
        trainer = super().make_trainer(model, EmbeddingTrainer, embedding=self.config.embedding)
        self.before = self.task.score(self.predict(trainer))
        trainer.compute_metrics = self.compute_metrics
        return trainer

    def evaluate(self) -> Results:
        if self.args.should_save:
            self.save_for_sentence_transformers()
        results = super().evaluate()
        results.baselines = {"before training": self.before, **results.baselines}
        results.notes.insert(0, f"Each of {len(self.data['test']):,} test anchors looks for its positive among all.")
        results.usage = _USAGE.format(path=self.run_dir.name)
        results.files["modules.json"] = "the same model for sentence-transformers"
        return results

    def save_for_sentence_transformers(self) -> None:
        """Add to the saved model what sentence-transformers reads beside it: pooling, length, normalisation."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        transformer = Transformer(str(self.run_dir), max_seq_length=self.encoder.max_length)
        model = SentenceTransformer(modules=[transformer, *self.trainer.head], device="cpu")
        model.save(str(self.run_dir), create_model_card=False)


_USAGE = """import hf_llm
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
embeddings = model.encode(["A man is eating food.", "A man eats a meal."])
print(model.similarity(embeddings, embeddings))"""
