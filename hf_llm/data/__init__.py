"""Corpora, tokenizers, objectives, packing and samples: from a string in a config to batches."""

from . import denoising, language_modeling  # noqa: F401 (rows of OBJECTIVES)
from .checks import check_corpus_size, check_token_ids, check_vocabulary
from .corpora import CORPORA, CorpusSpec, load_corpus
from .objectives import OBJECTIVES, Objective, check_objective, make_objective
from .packing import PackedRows, pack_corpus
from .samples import EvaluationSamples, TrainingSamples, collate
from .streaming import StreamingSamples
from .tokenization import ALGORITHMS, STACK_TOKENS, train_tokenizer


__all__ = [
    "ALGORITHMS",
    "CORPORA",
    "OBJECTIVES",
    "STACK_TOKENS",
    "CorpusSpec",
    "EvaluationSamples",
    "Objective",
    "PackedRows",
    "StreamingSamples",
    "TrainingSamples",
    "check_corpus_size",
    "check_objective",
    "check_token_ids",
    "check_vocabulary",
    "collate",
    "load_corpus",
    "make_objective",
    "pack_corpus",
    "train_tokenizer",
]
