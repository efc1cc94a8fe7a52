"""Is an aligned model better, and at what price? Samples of two models, judged by what neither was trained on."""

from collections.abc import Sequence

import numpy
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.rlhf.sampling import plain_generation, sample
from hf_llm.rlhf.trl_internals import pad


class Judge:
    """A linear classifier of two classes on tf-idf of words, pairs of words and parts of words: of another
    architecture than any reward model.

    Args:
        texts: that it learns from.
        labels: of each, 0 or 1 (what is wanted).
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int]):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
        self.model = make_pipeline(make_union(words, parts), LogisticRegression(C=8.0, max_iter=1000))
        self.model.fit(list(texts), list(labels))

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Share of texts whose class it names, between 0 and 1."""
        return float(self.model.score(list(texts), list(labels)))

    def __call__(self, texts: Sequence[str]) -> numpy.ndarray:
        """Whether each text is of class 1: booleans (texts,)."""
        return self.model.predict(list(texts)) == 1


# ---- sampling and probabilities ------------------------------------------------------------------------------------


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    num_samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
) -> list[list[list[int]]]:
    """
    Sample from a decoder at temperature 1, from all of its distribution.

    Returns:
        For each prompt `num_samples` completions: token ids up to the first end token, that included.
    """
    torch.manual_seed(seed)
    ends = model.generation_config.eos_token_id
    options = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_samples,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}),
    )
    with plain_generation(model):
        batches = [prompt_ids[i : i + batch_size] for i in range(0, len(prompt_ids), batch_size)]
        rows = [row for batch in batches for row in sample(model, batch, options)]
    return [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]


@torch.no_grad()
def log_probs(
    model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]], batch_size: int = 64
) -> list[float]:
    """Log-probability of each completion after its prompt by a decoder, in nats, summed over its tokens."""
    totals = []
    for start in range(0, len(prompt_ids), batch_size):
        pairs = list(zip(prompt_ids, completion_ids, strict=True))[start : start + batch_size]
        ids = pad([torch.tensor([*prompt, *completion]) for prompt, completion in pairs], padding_value=0)
        mask = pad([torch.ones(len(p) + len(c), dtype=torch.long) for p, c in pairs], padding_value=0)
        targets = pad([torch.tensor([-100] * len(p) + list(c)) for p, c in pairs], padding_value=-100)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1].float()
        losses = functional.cross_entropy(logits.mT, targets[:, 1:].to(model.device), reduction="none")
        totals += (-losses.sum(1)).tolist()
    return totals


# ---- what is measured -----------------------------------------------------------------------------------------------


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct sequences of `n` words by all of them (Li et al., arXiv 1510.03055): near 0 where a model repeats
    itself, within texts or from text to text."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
