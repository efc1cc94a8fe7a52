"""Packing: every token exactly once, nothing over capacity, tight rows; the cache; bytes; bad input."""

import datasets
import numpy as np
import pytest
from tokenizers import normalizers
from transformers import ByT5Tokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from hf_llm.data import (
    StreamingSamples,
    check_corpus_size,
    check_token_ids,
    check_vocabulary,
    load_corpus,
    make_objective,
    pack_corpus,
    train_tokenizer,
)
from hf_llm.data.encoding import encode_batch, encode_texts
from hf_llm.data.packing import best_fit


def stored_tokens(rows):
    return sorted(tuple(chunk.ids) for row in range(len(rows)) for chunk in rows[row])


@pytest.mark.parametrize("dimensions", [1, 2])
def test_best_fit_places_each_item_once_within_capacity(dimensions):
    rng = np.random.default_rng(0)
    for trial in range(30):
        capacity = tuple(rng.integers(20, 600, dimensions).tolist())
        lengths = np.stack([rng.integers(1, c + 1, rng.integers(1, 400)) for c in [capacity[0]]] * 1, axis=1)
        if dimensions == 2:
            second = np.maximum(1, (lengths[:, :1] / capacity[0] * capacity[1] * rng.uniform(0.3, 1)).astype(int))
            lengths = np.concatenate((lengths, second), axis=1)
        rows = best_fit(lengths, capacity)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all((lengths[row].sum(0) <= capacity).all() for row in rows)
        assert rows == best_fit(lengths, capacity)
        least = np.ceil(lengths.sum(0) / capacity).max()
        assert len(rows) <= 1.5 * least + 1, trial


def test_best_fit_takes_the_fullest_row():
    lengths = np.array([[7], [5], [3], [5], [2]])
    assert best_fit(lengths, (10,)) == [[0, 2], [1, 3], [4]]


def test_every_token_is_packed_exactly_once(corpus, objective_for, tmp_path, trainable):
    tokenizer, objective = objective_for(*trainable)
    rows = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path)
    start, end = (objective.frame_ids[part] for part in ("document_start", "document_end"))
    documents = [np.concatenate((start, ids, end)) for ids, _ in encode_texts(tokenizer, corpus["text"][:])]
    assert (np.asarray(rows.tokens) == np.concatenate(documents)).all()
    spans = sorted(zip(rows.chunk_start.tolist(), rows.chunk_length.tolist(), strict=True))
    assert [s for s, _ in spans] == np.cumsum([0] + [n for _, n in spans[:-1]]).tolist()
    assert sum(n for _, n in spans) == len(rows.tokens) == rows.report["tokens"]
    boundaries = np.cumsum([len(d) for d in documents])
    assert set(boundaries[:-1]) <= {s for s, _ in spans}  # no chunk holds two documents
    assert rows.report["bytes"] == sum(len(text.encode()) for text in corpus["text"])
    for i in range(len(rows)):
        needs = [objective.lengths(len(chunk.ids), chunk.mode) for chunk in rows[i]]
        assert (np.sum(needs, axis=0) <= rows.capacity).all()


def test_documents_are_cut_only_when_they_must(corpus, objective_for, tmp_path):
    tokenizer, objective = objective_for("causal", "decoder")
    rows = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path)
    lengths = [len(ids) + 2 for ids, _ in encode_texts(tokenizer, corpus["text"][:])]
    expected = [n for length in lengths for n in [64] * (length // 64) + [length % 64] * (length % 64 > 0)]
    assert sorted(rows.chunk_length) == sorted(expected)
    assert rows.report["fill"] == pytest.approx(sum(lengths) / (64 * len(rows))) and rows.report["fill"] > 0.98


def test_default_corpus_fills_its_rows(objective_for, tmp_path):
    corpus = load_corpus("python-stdlib", "validation", held_out_fraction=0.1)
    for name, stack in [("causal", "decoder"), ("masked_lm", "encoder"), ("span_corruption", "encoder-decoder")]:
        tokenizer, objective = objective_for(name, stack)
        report = pack_corpus(corpus, tokenizer, objective, 512, cache_dir=tmp_path).report
        assert report["fill"] >= 0.98 and report.get("target_fill", 1.0) >= 0.98


@pytest.mark.parametrize("algorithm", ["bpe", "byte", "wordpiece", "unigram", "word", "char"])
def test_token_bytes_sum_to_the_text(documents, algorithm):
    size = None if algorithm == "byte" else 420
    tokenizer = train_tokenizer(documents, algorithm, size, "decoder", show_progress=False)
    texts = documents[:50] + ["☃", "é 字\U0001f98a x", " \n", "<|eos|> text"]
    for text, (ids, num_bytes) in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert len(ids) == len(num_bytes) and (num_bytes >= 0).all()
        assert num_bytes.sum() == (len(text.encode()) if len(ids) else 0)
        assert tokenizer.eos_token_id not in ids  # special tokens in the text are text


def test_cache_is_used_and_knows_what_matters(corpus, objective_for, tokenizers, tmp_path, monkeypatch):
    tokenizer, objective = objective_for("causal", "decoder")
    first = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path)
    others = [
        pack_corpus(corpus, tokenizer, objective, 65, cache_dir=tmp_path),
        pack_corpus(corpus.select(range(100)), tokenizer, objective, 64, cache_dir=tmp_path),
        pack_corpus(corpus, tokenizers["encoder-decoder"], objective, 64, cache_dir=tmp_path),
        pack_corpus(corpus, *objective_for("prefix_lm", "decoder"), 64, cache_dir=tmp_path),
    ]
    prints = [rows.report["fingerprint"] for rows in [first, *others]]
    assert len(set(prints)) == 5 and sorted(p.name for p in tmp_path.iterdir()) == sorted(prints)  # nothing left over
    monkeypatch.setattr(datasets.Dataset, "map", None)
    again = pack_corpus(datasets.Dataset.from_dict(corpus[:]), tokenizer, objective, 64, cache_dir=tmp_path)
    assert again.report == first.report and stored_tokens(again) == stored_tokens(first)


def test_fingerprint_is_of_what_decides_the_ids(corpus, documents, tmp_path):
    def fingerprint(tokenizer):
        objective = make_objective("causal", tokenizer, "decoder")
        return pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path).report["fingerprint"]

    def trained(vocab_size):
        return train_tokenizer(documents, "bpe", vocab_size, "decoder", show_progress=False)

    first = fingerprint(tokenizer := trained(400))
    tokenizer(documents[:2], padding="max_length", truncation=True, max_length=7)
    assert tokenizer.backend_tokenizer.padding and tokenizer.backend_tokenizer.truncation
    assert fingerprint(tokenizer) == first and tokenizer.backend_tokenizer.truncation["max_length"] == 7
    assert fingerprint(trained(401)) != first
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    byte_tokenizers = (ByT5Tokenizer(), ByT5Tokenizer(extra_ids=124))
    assert len({first, fingerprint(tokenizer), *map(fingerprint, byte_tokenizers)}) == 4


@pytest.mark.parametrize("name", ["causal", "span_corruption"])
def test_a_tokenizer_of_bytes_in_python(documents, tmp_path, name):
    stack = "decoder" if name == "causal" else "encoder-decoder"
    texts = [*documents[:20], "Привет </s> <extra_id_3>", "字 x\U0001f98a"]
    tokenizer = ByT5Tokenizer()
    rows = pack_corpus(
        datasets.Dataset.from_dict({"text": texts}), tokenizer, make_objective(name, tokenizer, stack), 64,
        cache_dir=tmp_path,
    )  # fmt: skip
    ends = int(name == "causal")
    assert rows.report["bytes"] == rows.report["tokens"] - ends * len(texts) == sum(len(t.encode()) for t in texts)
    ids = np.asarray(rows.tokens[-len(texts[-1].encode()) - ends :][: len(texts[-1].encode())])
    assert tokenizer.decode(ids) == texts[-1]


def test_a_tokenizer_that_does_not_tell_what_its_tokens_cover(corpus, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[UNK]\n[SEP]\n[PAD]\n[CLS]\n[MASK]\nthe\n", encoding="utf-8")
    tokenizer = BertTokenizerLegacy(vocabulary)
    objective = make_objective("masked_lm", tokenizer, "encoder")
    with pytest.raises(ValueError, match="tokenizer: BertTokenizerLegacy does not tell .* must be a fast tokenizer"):
        pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path / "packed")


def test_words_are_stored_with_their_tokens(corpus, tokenizers, tmp_path):
    """And read off a stream as off packed rows."""
    tokenizer = tokenizers["encoder"]
    objective = make_objective("masked_lm", tokenizer, "encoder", whole_word=True)
    rows = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path)
    encoded = encode_batch({"text": corpus["text"][:]}, tokenizer, objective, (64,))
    assert (np.asarray(rows.word_starts) == np.concatenate(encoded["word_starts"])).all()
    stored = sorted((tuple(c.ids), tuple(c.word_starts)) for row in range(len(rows)) for c in rows[row])
    stream = StreamingSamples(
        datasets.Dataset.from_dict(corpus[:]).to_iterable_dataset(), tokenizer, objective, 64, window_rows=10**6
    )
    _, window = next(stream._read_windows(stream._start))
    assert sorted((tuple(c.ids), tuple(c.word_starts)) for row in range(len(window)) for c in window[row]) == stored


def test_several_processes_give_the_same_rows(corpus, objective_for, tmp_path):
    tokenizer, objective = objective_for("ul2", "encoder-decoder")
    one = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path / "one")
    two = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path / "two", num_proc=2)
    assert one.report["fingerprint"] == two.report["fingerprint"]
    assert [stored_tokens(one), one.row_start.tolist()] == [stored_tokens(two), two.row_start.tolist()]


@pytest.mark.parametrize("stack", ["encoder-decoder", "decoder"])
def test_pairs_are_kept_whole(objective_for, tmp_path, stack):
    pairs = {"source": ["the fox", "x " * 500, "dogs"], "target": ["jumps", "over", "hills print(x)"]}
    tokenizer, objective = objective_for("supervised", stack)
    rows = pack_corpus(datasets.Dataset.from_dict(pairs), tokenizer, objective, 64, cache_dir=tmp_path)
    assert rows.report["dropped_documents"] == 1  # it does not fit, and is counted
    texts = {(tokenizer.decode(c.ids[: c.mode]), tokenizer.decode(c.ids[c.mode :])) for c in rows[0]}
    assert texts == {("the fox", "jumps"), ("dogs", "hills print(x)")}


def test_bad_input(corpus, objective_for, tmp_path):
    tokenizer, objective = objective_for("causal", "decoder")
    _, pair = objective_for("span_corruption", "encoder-decoder")
    renamed = corpus.rename_column("text", "body")
    for arguments, options, message in [
        ((corpus, tokenizer, objective, 4), {}, "row_length=4: must be at least 8"),
        ((corpus, tokenizer, objective, 64), {"target_row_length": 8}, "target_row_length=8.*encoder-decoder"),
        ((corpus, tokenizer, pair, 64), {"target_row_length": 1}, "target_row_length=1: must be at least 4"),
        ((renamed, tokenizer, objective, 64), {}, r"needs columns \['text'\]; it has \['body'\]"),
        ((corpus.select([]), tokenizer, objective, 64), {}, "none of its 0 documents"),
    ]:
        with pytest.raises(ValueError, match=message):
            pack_corpus(*arguments, **options, cache_dir=tmp_path)
        assert not list(tmp_path.iterdir())  # a failure leaves nothing behind
    rows = pack_corpus(corpus, tokenizer, objective, 64, cache_dir=tmp_path)
    check_vocabulary(tokenizer, 520)
    check_token_ids(rows, 520)
    check_corpus_size(rows, len(rows))
    with pytest.raises(ValueError, match="vocab_size=519.*at least 520"):
        check_vocabulary(tokenizer, 519)
    with pytest.raises(ValueError, match="out of range for vocab_size=300"):
        check_token_ids(rows, 300)
    with pytest.raises(ValueError, match=f"batch_size={len(rows) + 1}.*at most {len(rows)}"):
        check_corpus_size(rows, len(rows) + 1)
