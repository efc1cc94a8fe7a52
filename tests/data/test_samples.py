"""Samples: rows as the models want them, functions of their index alone; streams that resume exactly."""

import json
import pickle
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_llm.data import (
    EvaluationSamples,
    StreamingSamples,
    TrainingSamples,
    collate,
    load_corpus,
    pack_corpus,
)


@pytest.fixture(scope="module")
def packed(corpus, objective_for, tmp_path_factory):
    """(name, stack) -> rows and their objective."""
    folder = tmp_path_factory.mktemp("packed")

    def get(name, stack):
        tokenizer, objective = objective_for(name, stack)
        return pack_corpus(corpus, tokenizer, objective, 64, cache_dir=folder), objective

    return get


def equal(a, b):
    return a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


def test_rows_as_the_models_want_them(packed, trainable):
    rows, objective = packed(*trainable)
    stack = objective.stack
    for sample in map(TrainingSamples(rows, objective, seed=3).__getitem__, range(len(rows))):
        halves = [""] if stack != "encoder-decoder" else ["", "decoder_"]
        keys = {h + key for h in halves for key in ("input_ids", "position_ids", "document_ids")} | {"labels"}
        assert set(sample) == keys and all(value.dtype == np.int64 for value in sample.values())
        counts = []
        for half, length in zip(halves, rows.capacity, strict=True):
            ids, positions, documents = (sample[half + k] for k in ("input_ids", "position_ids", "document_ids"))
            assert ids.shape == positions.shape == documents.shape == (length,)
            real = documents >= 0
            assert (np.diff(documents[real]) >= 0).all() and not real[real.sum() :].any()  # padding is at the end
            assert (ids[~real] == objective.tokens.ids["pad"]).all() and (positions[~real] == 0).all()
            for d in range(documents.max() + 1):
                assert (positions[documents == d] == np.arange((documents == d).sum())).all()
            counts.append(set(documents[real]))
        assert all(c == counts[0] for c in counts)  # both halves hold the same documents
        labels = sample["labels"]
        assert labels.shape == (rows.capacity[-1],) and (labels[~real] == -100).all()
        if stack == "decoder":
            assert (labels[real & (sample["position_ids"] == 0)] == -100).all()  # a first token is never a target
            seen = labels != -100
            assert (labels[seen] == sample["input_ids"][seen]).all()
        if stack == "encoder-decoder":
            first = sample["decoder_position_ids"] == 0
            inputs = sample["decoder_input_ids"]
            assert (inputs[first & real] == objective.decoder_start_token_id).all()
            inside = np.flatnonzero(real & ~first)
            assert (inputs[inside] == labels[inside - 1]).all()  # shifted right within the document


def test_samples_are_functions_of_their_index(packed):
    rows, objective = packed("masked_lm", "encoder")
    length = 3 * len(rows)
    samples = TrainingSamples(rows, objective, seed=1, length=length)
    in_order = [samples[n] for n in range(length)]
    fresh = TrainingSamples(rows, objective, seed=1, length=length + 10)
    for n in np.random.default_rng(0).permutation(length):
        assert equal(fresh[int(n)], in_order[n])
    loader = torch.utils.data.DataLoader(samples, batch_size=4, num_workers=2, collate_fn=collate)
    batches = list(loader)
    assert (torch.cat([b["labels"] for b in batches]).numpy() == np.stack([s["labels"] for s in in_order])).all()
    other = TrainingSamples(rows, objective, seed=2, length=length)
    assert sum(equal(other[n], in_order[n]) for n in range(length)) < length / 10


def test_workers_open_the_rows_themselves(packed, corpus, objective_for, tmp_path, monkeypatch):
    """What is sent to a worker does not grow with the corpus, and is found from any folder."""
    rows, objective = packed("causal", "decoder")
    tokenizer, _ = objective_for("causal", "decoder")
    monkeypatch.chdir(tmp_path)
    small = pack_corpus(corpus.select(range(20)), tokenizer, objective, 64, cache_dir=Path("cache"))
    monkeypatch.chdir("/")
    samples = [TrainingSamples(r, objective, length=10_000) for r in (rows, small)]
    drawn = [s[len(s) - 1] for s in samples]
    large, little = map(pickle.dumps, samples)
    assert abs(len(large) - len(little)) < 300 and len(large) < rows.tokens.nbytes / 2
    opened = [pickle.loads(pickled) for pickled in (large, little)]
    assert all(
        isinstance(s.rows.tokens, np.memmap) and s.rows.report == r.report for s, r in zip(opened, (rows, small))
    )
    assert all(equal(s[len(s) - 1], sample) for s, sample in zip(opened, drawn))


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(packed):
    rows, objective = packed("masked_lm", "encoder")
    options = {"batch_size": 4, "collate_fn": collate}
    samples = TrainingSamples(rows, objective, seed=1, length=12)
    spawned = torch.utils.data.DataLoader(samples, num_workers=1, multiprocessing_context="spawn", **options)
    here = torch.utils.data.DataLoader(samples, **options)
    assert all(equal(a, b) for a, b in zip(spawned, here, strict=True))


def test_an_epoch_shows_every_row_once_with_fresh_draws(packed):
    rows, objective = packed("causal", "decoder")
    samples = TrainingSamples(rows, objective, length=2 * len(rows))
    epochs = [[samples[e * len(rows) + i]["input_ids"].tobytes() for i in range(len(rows))] for e in range(2)]
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    rows, objective = packed("masked_lm", "encoder")
    samples = TrainingSamples(rows, objective, length=2 * len(rows))
    draws = {samples[n]["input_ids"].tobytes() for n in range(2 * len(rows))}
    assert len(draws) > 1.9 * len(rows)


def test_length_is_what_the_caller_says(packed):
    rows, objective = packed("causal", "decoder")
    assert len(TrainingSamples(rows, objective)) == len(rows)
    samples = TrainingSamples(rows, objective, length=5)
    assert len(samples) == 5 and len(list(samples)) == 5
    with pytest.raises(IndexError, match="sample 5 of 5"):
        samples[5]


def test_rows_of_another_objective_are_refused(packed):
    rows, _ = packed("causal", "decoder")
    with pytest.raises(ValueError, match="packed for .'causal'"):
        TrainingSamples(rows, packed("masked_lm", "encoder")[1])


def test_evaluation_counts_the_bytes_of_what_it_predicts(packed, objective_for, documents, trainable):
    rows, objective = packed(*trainable)
    samples = EvaluationSamples(rows, objective)
    assert len(samples) == len(rows)
    batch = collate([samples[n] for n in range(len(rows))])
    assert equal(batch, collate([samples[n] for n in range(len(rows))]))
    assert batch["num_bytes"].shape == (len(rows),) and batch["num_bytes"].dtype == torch.int64
    total = sum(len(text.encode()) for text in documents)
    if objective.name == "bart":
        assert batch["num_bytes"].sum() == total
    tokenizer, _ = objective_for(*trainable)
    is_text = torch.tensor(~objective.tokens.is_special)
    for labels, num_bytes in zip(batch["labels"], batch["num_bytes"], strict=True):
        kept = labels[labels >= 0]
        raw = tokenizer.decode(kept[is_text[kept]]).encode()  # chunks may begin within a character
        assert abs(len(raw.replace("\ufffd".encode(), b"?")) - num_bytes) <= 12


def stream_of(documents):
    return datasets.Dataset.from_dict({"text": documents}).to_iterable_dataset(num_shards=3)


def streaming_samples(objective_for, corpus, name="masked_lm", stack="encoder", **options):
    tokenizer, objective = objective_for(name, stack)
    return StreamingSamples(corpus, tokenizer, objective, 64, seed=5, **{"window_rows": 40} | options)


@pytest.mark.parametrize("kind", ["shards", "mixture", "jsonl"])
def test_a_stream_resumes_exactly(objective_for, documents, tmp_path, kind):
    """From any position, over windows and epochs, though the loader has read ahead."""
    for source in "ab":
        part = documents[:120] if source == "a" else documents[120:]
        lines = [json.dumps({"text": text}) for text in part]
        (tmp_path / f"{source}.jsonl").write_text("\n".join(lines))
    specs = {
        "jsonl": str(tmp_path / "*.jsonl"),
        "mixture": [{"name": str(tmp_path / "a.jsonl"), "weight": 3}, {"name": str(tmp_path / "b.jsonl")}],
    }

    def make():
        corpus = stream_of(documents) if kind == "shards" else load_corpus(specs[kind], streaming=True)
        return streaming_samples(objective_for, corpus, length=900)

    samples = make()
    seen, states = [], {}
    for sample in samples:
        seen.append(sample)
        if len(seen) % 130 == 0:  # the position 30 samples ago
            states[len(seen) - 30] = json.dumps(samples.state_dict(consumed=len(seen) - 30))
    assert len(seen) == 900
    for consumed, state in states.items():
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        rest = list(islice(resumed, 200))
        expected = seen[consumed : consumed + 200]
        assert all(equal(a, b) for a, b in zip(rest, expected, strict=True))


def test_a_stream_shows_every_document_once_an_epoch(objective_for, tokenizers, documents):
    samples = streaming_samples(objective_for, stream_of(documents), "causal", "decoder")
    total = sum(len(tokenizers["decoder"](t, split_special_tokens=True)["input_ids"]) + 1 for t in documents)
    shown, ids = 0, []
    for sample in samples:
        real = sample["document_ids"] >= 0
        ids.extend(sample["input_ids"][real])
        shown += real.sum()
        if shown >= total:
            break
    assert shown == total and ids.count(tokenizers["decoder"].bos_token_id) == len(documents)
    assert shown / (64 * samples.state_dict()["consumed"]) > 0.97


def test_a_stream_can_be_read_twice(objective_for, documents):
    samples = streaming_samples(objective_for, stream_of(documents), length=50)
    assert all(equal(a, b) for a, b in zip(list(samples), list(samples), strict=True))


def test_stream_errors(objective_for, documents):
    samples = streaming_samples(objective_for, stream_of(documents), length=200)
    list(samples)
    samples.state_dict(consumed=190)
    for consumed in (3, 201):
        with pytest.raises(ValueError, match=f"consumed={consumed}: must be between"):
            samples.state_dict(consumed=consumed)
    with pytest.raises(ValueError, match="window_rows=41: the saved position needs 40"):
        streaming_samples(objective_for, stream_of(documents), window_rows=41).load_state_dict(samples.state_dict())
    with pytest.raises(ValueError, match="no document"):
        next(iter(streaming_samples(objective_for, stream_of(documents).filter(lambda x: False))))
    loader = torch.utils.data.DataLoader(samples, num_workers=1, collate_fn=collate)
    with pytest.raises(ValueError, match="dataloader_num_workers"):
        next(iter(loader))
