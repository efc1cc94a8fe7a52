"""Trains a tokenizer and reports on it.

    python recipes/train_tokenizer.py --corpus python-stdlib --algorithm bpe --vocab-size 8192 --stack decoder \
        --output outputs/tokenizer

The folder that comes out is opened by `AutoTokenizer.from_pretrained`; `tokenizer_report.json` in it holds the
figures on held-out text that are printed.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datasets import disable_progress_bars
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from hf_llm.data import ALGORITHMS, STACK_TOKENS, load_corpus, train_tokenizer
from hf_llm.data.tokenization import NORMALIZERS


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a tokenizer.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", default=["python-stdlib"], help="names, paths, globs or Hub datasets")
    parser.add_argument("--weights", nargs="+", type=float, help="one per corpus, for a mixture")
    parser.add_argument("--text-column", default="text", help="column of the text in jsonl, parquet and Hub datasets")
    parser.add_argument("--held-out-fraction", type=float, default=0.05, help="share for the report; 0 reports on all")
    parser.add_argument("--max-documents", type=int, help="train on the first so many documents, read as a stream")
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="bpe")
    parser.add_argument("--vocab-size", type=int, help="entries, special tokens included; 8192 where not given")
    parser.add_argument("--stack", choices=list(STACK_TOKENS), default="decoder", help="decides the special tokens")
    parser.add_argument("--normalization", choices=list(NORMALIZERS), default="none")
    parser.add_argument("--chat-template", action="store_true", help="add ChatML's tokens and template")
    parser.add_argument("--extra-special-tokens", nargs="*", default=[], help="e.g. UL2's [R] [S] [X]")
    parser.add_argument("--model-max-length", type=int, help="recorded in the tokenizer")
    parser.add_argument("--output", type=Path, default=Path("outputs/tokenizer"), help="folder that is written")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    if options.weights and len(options.weights) != len(options.corpus):
        parser.error(f"--weights: {len(options.weights)} numbers for {len(options.corpus)} corpora; must be one each")
    return options


def read_documents(options: argparse.Namespace, split: str) -> Iterator[str]:
    """Documents of a split, with a progress bar over them."""
    weights = options.weights or [None] * len(options.corpus)  # without weights each is read once
    spec = [
        {"name": name, "weight": weight, "text_column": options.text_column}
        for name, weight in zip(options.corpus, weights, strict=True)
    ]
    streaming = options.max_documents is not None
    corpus = load_corpus(spec, split, held_out_fraction=options.held_out_fraction, streaming=streaming)
    total = options.max_documents
    if streaming:
        corpus = corpus.take(options.max_documents)
    else:
        total = len(corpus)
    for document in tqdm(corpus, desc=f"Reading {split}", total=total, unit=" documents", disable=options.quiet):
        yield document["text"]


def tokenizer_report(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], algorithm: str) -> dict:
    """Figures of a tokenizer on held-out text.

    Returns:
        `vocab_size`, `documents`, `bytes`, `tokens`, `bytes_per_token` (without special tokens), `tokens_per_second`,
        `unknown_fraction` of tokens, `round_trip` (fraction of documents that decode to themselves) and
        `round_trip_loses` (what the scheme may change).

    Raises:
        ValueError: no text; or a round trip failed although the algorithm promises it.
    """
    if not (texts := list(documents)):
        raise ValueError("documents: the corpus is empty")
    start = time.perf_counter()
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    seconds = time.perf_counter() - start
    num_tokens = sum(map(len, encoded))
    num_bytes = sum(len(t.encode("utf-8")) for t in texts)
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded) if tokenizer.unk_token else 0
    exact = [tokenizer.decode(ids) == text for ids, text in zip(encoded, texts, strict=True)]
    loses = ALGORITHMS[algorithm].loses
    if not loses and tokenizer.backend_tokenizer.normalizer is not None:
        loses = "what the normalization changes"
    if not loses and not all(exact):
        broken = texts[exact.index(False)][:80]
        raise ValueError(f"algorithm={algorithm!r} promises decode(encode(text)) == text, but not for {broken!r}")
    return {
        "algorithm": algorithm,
        "vocab_size": len(tokenizer),
        "documents": len(texts),
        "bytes": num_bytes,
        "tokens": num_tokens,
        "bytes_per_token": num_bytes / num_tokens,
        "tokens_per_second": num_tokens / seconds,
        "unknown_fraction": unknown / num_tokens,
        "round_trip": sum(exact) / len(exact),
        "round_trip_loses": loses or "nothing",
    }


def main(arguments: Sequence[str] | None = None) -> dict:
    """Trains, saves and reports; returns the report."""
    options = parse_arguments(arguments)
    if options.quiet:
        disable_progress_bars()
    vocab_size = options.vocab_size
    if vocab_size is None and options.algorithm != "byte":
        vocab_size = 8192
    tokenizer = train_tokenizer(
        read_documents(options, "train"),
        options.algorithm,
        vocab_size,
        options.stack,
        normalization=options.normalization,
        chat_template=options.chat_template,
        extra_special_tokens=options.extra_special_tokens,
        model_max_length=options.model_max_length,
        show_progress=not options.quiet,
    )
    report = {"corpus": options.corpus, "stack": options.stack}
    split = "validation" if options.held_out_fraction else "train"
    report |= tokenizer_report(tokenizer, read_documents(options, split), options.algorithm)
    tokenizer.save_pretrained(options.output)
    (options.output / "tokenizer_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    print(f"Saved to {options.output}")
    return report


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # bad input: its message says what is legal
        raise SystemExit(f"error: {error}") from None
