"""Objectives: what each does to a chunk, its statistics, and T5's published arithmetic."""

from dataclasses import dataclass

import numpy as np
import pytest

from hf_llm.data import OBJECTIVES, make_objective
from hf_llm.data.denoising import UL2_DENOISERS, Denoiser, infill, noise_mask, permute_sentences
from hf_llm.data.objectives import JOINED_PAIR, PAIR, Example, Objective


IGNORE = -100


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def ordinary(objective, rng, length):
    return rng.choice(objective.tokens.ordinary, length)


def reference_lengths(inputs_length, noise_density, mean_span_length):
    """`random_spans_helper` by its definition: the longest raw text whose corrupted form and eos fit."""

    def corrupted(raw):
        noise = int(round(raw * noise_density))
        spans = int(round(noise / mean_span_length))
        return raw - noise + spans + 1, noise + spans + 1

    raw = max(n for n in range(inputs_length - 1, 4 * inputs_length) if corrupted(n)[0] <= inputs_length)
    return raw, corrupted(raw)[1]


def restore(source, target, sentinels):
    """Puts the spans of a T5 target back where their sentinels stand in the source."""
    spans, current = {}, None
    for token in target.tolist():
        if token in sentinels:
            current = spans[token] = []
        else:
            current.append(token)
    return [token for s in source.tolist() for token in spans.pop(s, [s])], spans


def test_published_length_arithmetic(tokenizers):
    for inputs in (64, 128, 256, 512, 1024):
        for density, mean in [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 8.0), (0.3, 1.0), (0.15, 64.0)]:
            expected = reference_lengths(inputs, density, mean)
            if inputs * density < mean or expected[0] * density > 100 * mean:
                continue  # the helper assumes at least one span; the tokenizer has 100 sentinels
            options = {"noise_density": density, "mean_span_length": mean}
            objective = make_objective("span_corruption", tokenizers["encoder-decoder"], "encoder-decoder", **options)
            raw = objective.longest_chunk((inputs, 4 * inputs))
            assert (raw, objective.lengths(raw)[1]) == expected


def test_default_target_row_is_the_published_one(tokenizers):
    objective = make_objective("span_corruption", tokenizers["encoder-decoder"], "encoder-decoder")
    assert objective.capacity(512, None) == (512, 114)
    assert objective.longest_chunk((512, 114)) == 568  # T5's pretraining


def test_noise_mask_statistics(rng):
    masks = np.stack([noise_mask(568, rng, 0.15, 3.0) for _ in range(2000)])
    assert (masks.sum(1) == 85).all() and not masks[:, 0].any() and masks[:, -1].all()
    starts = masks & ~np.roll(masks, 1, axis=1)
    assert (starts.sum(1) == 28).all()
    middle = masks[:, 50:-50].mean(0)
    assert abs(middle.mean() - 0.15) < 0.01 and middle.std() < 0.03  # everywhere alike


@pytest.mark.parametrize("length", [1, 2, 3, 5, 17, 100, 568])
@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.5, 3.0), (0.9, 1.0), (0.15, 64.0)])
def test_span_corruption_can_be_undone(tokenizers, rng, length, density, mean):
    objective = make_objective(
        "span_corruption",
        tokenizers["encoder-decoder"],
        "encoder-decoder",
        noise_density=density,
        mean_span_length=mean,
    )
    if not objective.fits(length, (10_000, 10_000)):
        pytest.skip("more spans than sentinels")
    ids = ordinary(objective, rng, length)
    before = ids.copy()
    example = objective(ids, rng)
    eos = objective.tokens.ids["eos"]
    assert example.source[-1] == eos == example.target[-1]
    restored, left = restore(example.source[:-1], example.target[:-1], objective.tokens.sentinels)
    assert restored == before.tolist() and not left and (ids == before).all()
    assert (len(example.source), len(example.target)) == objective.lengths(length)
    assert (len(example.source) - 1, len(example.target) - 1) == Denoiser("R", density, mean).lengths(length)
    order = [token for token in example.source.tolist() if token in objective.tokens.sentinels]
    assert order == objective.tokens.sentinels[: len(order)].tolist()
    assert sorted(ids[example.predicted]) == sorted(t for t in example.target[:-1] if t not in order)


def test_causal(tokenizers, rng):
    objective = make_objective("causal", tokenizers["decoder"], "decoder")
    ids = ordinary(objective, rng, 10)
    example = objective(ids, rng)
    assert (example.source == ids).all() and example.target.tolist() == [IGNORE, *ids[1:]]
    assert example.predicted.tolist() == [False] + [True] * 9


@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_masked_lm_statistics(tokenizers, rng, probability):
    objective = make_objective("masked_lm", tokenizers["encoder"], "encoder", mask_probability=probability)
    ids = ordinary(objective, rng, 200_000)
    example = objective(ids, rng)
    source, labels = example.source[1:-1], example.target[1:-1]
    assert example.source[0] == objective.tokens.ids["cls"] and example.source[-1] == objective.tokens.ids["sep"]
    assert example.target[0] == example.target[-1] == IGNORE
    chosen = labels != IGNORE
    assert (chosen == example.predicted).all() and (labels[chosen] == ids[chosen]).all()
    assert (source[~chosen] == ids[~chosen]).all()
    masked, kept = source[chosen] == objective.tokens.ids["mask"], source[chosen] == ids[chosen]
    assert abs(chosen.mean() - probability) < 0.005
    assert abs(masked.mean() - 0.8) < 0.01 and abs(kept.mean() - 0.1) < 0.01
    drawn = source[chosen][~masked & ~kept]
    assert not objective.tokens.is_special[drawn].any() and len(set(drawn)) > 0.9 * len(objective.tokens.ordinary)


def test_special_tokens_are_never_masked(tokenizers, rng):
    objective = make_objective("masked_lm", tokenizers["encoder"], "encoder", mask_probability=0.9)
    special = np.flatnonzero(objective.tokens.is_special)
    ids = np.where(rng.random(5000) < 0.5, rng.choice(special, 5000), ordinary(objective, rng, 5000))
    labels = objective(ids, rng).target[1:-1]
    assert (labels[np.isin(ids, special)] == IGNORE).all() and (labels != IGNORE).any()
    assert (objective(special, rng).target == IGNORE).all()


def test_a_short_chunk_gets_one_masked_token(tokenizers, rng):
    objective = make_objective("masked_lm", tokenizers["encoder"], "encoder")
    counts = [objective(ordinary(objective, rng, 2), rng).predicted.sum() for _ in range(200)]
    assert min(counts) == 1


def test_infilling(rng):
    mask, ids = -1, np.arange(1, 1001)
    spans = []
    for _ in range(300):
        out = infill(ids, rng, mask, 0.3, 3.0)
        kept = out[out != mask]
        assert len(kept) == 700 and (np.diff(kept) > 0).all()  # exactly the budget is gone, and order stays
        spans.append((out == mask).sum())
    assert abs(np.mean(spans) - 100) < 2  # 300 tokens in Poisson(3) spans


def test_infilling_has_empty_spans_and_never_grows(rng):
    ids = np.arange(1, 101)
    inserted = 0
    for length in [1, 2, 3, 10, 100] * 100:
        out = infill(ids[:length], rng, -1, 0.3, 3.0)
        assert len(out) <= length
        padded = np.concatenate(([0], out, [length + 1]))
        for i in np.flatnonzero(padded == -1):
            inserted += padded[i - 1] >= 0 and padded[i + 1] == padded[i - 1] + 1  # nothing is missing around it
    assert inserted > 20
    assert (infill(ids, rng, -1, 0.0, 3.0) == ids).all()


def test_sentence_permutation(rng):
    ends = np.zeros(10, bool)
    ends[9] = True
    ids = np.array([1, 2, 9, 3, 9, 4, 5, 6, 9, 7])
    seen = {tuple(permute_sentences(ids, rng, ends)) for _ in range(500)}
    assert len(seen) == 24  # four sentences
    assert tuple(ids) in seen and (7, 3, 9, 1, 2, 9, 4, 5, 6, 9) in seen


def test_bart(tokenizers, rng):
    tokenizer = tokenizers["encoder-decoder"]
    objective = make_objective("bart", tokenizer, "encoder-decoder", mask_ratio=0.0)
    ids = np.array(tokenizer(" the fox. over hills\n the dogs. while", add_special_tokens=False)["input_ids"])
    example = objective(ids, rng)
    assert example.target.tolist() == [*ids, tokenizer.eos_token_id] and example.predicted.all()
    assert sorted(example.source[:-1]) == sorted(ids)
    sentences = {tokenizer.decode(objective(ids, rng).source[:-1]) for _ in range(200)}
    assert " over hills\n while the fox. the dogs." in sentences and len(sentences) == 24
    noisy = make_objective("bart", tokenizer, "encoder-decoder", permute_sentences=False)
    assert (noisy(ids, rng).source == tokenizer.mask_token_id).any()


def test_prefix_lm(tokenizers, rng):
    ids = np.arange(300, 400)
    pair = make_objective("prefix_lm", tokenizers["encoder-decoder"], "encoder-decoder")
    joined = make_objective("prefix_lm", tokenizers["decoder"], "decoder")
    lengths = []
    for _ in range(300):
        example = pair(ids, rng)
        assert (np.concatenate((example.source[:-1], example.target[:-1])) == ids).all()
        lengths.append(len(example.source) - 1)
        example = joined(ids, rng)
        cut = np.flatnonzero(example.target != IGNORE)[0]
        assert (example.source == ids).all() and (example.target[cut:] == ids[cut:]).all() and 25 <= cut <= 75
    assert (min(lengths), max(lengths)) == (25, 75)
    assert joined(ids[:1], rng).target.tolist() == [IGNORE]


@pytest.mark.parametrize("stack", ["encoder-decoder", "decoder"])
def test_ul2(tokenizers, rng, stack):
    objective = make_objective("ul2", tokenizers["encoder-decoder"], stack, mode_tokens=True)
    for mode, denoiser in enumerate(UL2_DENOISERS):
        ids = ordinary(objective, rng, 150)
        example = objective(ids, rng, mode)
        if stack == "decoder":
            assert (len(example.source),) == (len(example.target),) == objective.lengths(150, mode)
            read = example.target == IGNORE
            source, target = example.source[read], example.target[~read]
            assert (example.source[~read] == target).all()
        else:
            source, target = example.source, example.target
            assert (len(source), len(target)) == objective.lengths(150, mode)
        assert source[0] == objective.tokens.mode_ids[f"[{denoiser.mode}]"]
        if denoiser.mode == "S":
            assert (np.concatenate((source[1:-1], target[:-1])) == ids).all()
        else:
            assert restore(source[1:-1], target[:-1], objective.tokens.sentinels) == (ids.tolist(), {})
        assert abs(example.predicted.mean() - denoiser.noise_density) < 0.01
    drawn = np.bincount([objective.draw_mode(rng) for _ in range(7000)], minlength=7)
    assert (abs(drawn - 1000) < 150).all()
    weighted = make_objective("ul2", tokenizers["encoder-decoder"], stack, weights=[0, 0, 1, 0, 0, 0, 0])
    assert {weighted.draw_mode(rng) for _ in range(50)} == {2}


def test_supervised(tokenizers, rng):
    ids = np.arange(300, 320)
    pair = make_objective("supervised", tokenizers["encoder-decoder"], "encoder-decoder")
    eos = pair.tokens.ids["eos"]
    example = pair(ids, rng, 8)
    assert example.source.tolist() == [*ids[:8], eos] and example.target.tolist() == [*ids[8:], eos]
    joined = make_objective("supervised", tokenizers["decoder"], "decoder")
    bos, eos = joined.tokens.ids["bos"], joined.tokens.ids["eos"]
    example = joined(ids, rng, 8)
    assert example.source.tolist() == [bos, *ids, eos]
    assert example.target.tolist() == [IGNORE] * 9 + [*ids[8:], eos]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pure_functions(tokenizers, name):
    """The same arguments give the same example, and the ids are left alone; lengths are bounds, mostly exact."""
    for stack in OBJECTIVES[name].frames:
        tokenizer = tokenizers["encoder-decoder" if name in ("ul2", "span_corruption") else stack]  # the sentinels
        objective = make_objective(name, tokenizer, stack)
        for length in (2, 7, 60, 200):
            ids = ordinary(objective, np.random.default_rng(0), length)
            mode = length // 2 if name == "supervised" else 0
            first, second = (objective(ids, np.random.default_rng(5), mode) for _ in range(2))
            assert (first.source == second.source).all() and (first.target == second.target).all()
            bounds = objective.lengths(length, mode)
            real = (len(first.source), len(first.target))[: len(bounds)]
            assert len(first.predicted) == length
            assert all(r <= b for r, b in zip(real, bounds, strict=True))
            assert real == bounds or not objective.exact_lengths


def test_an_objective_from_outside(tokenizers, rng, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Echo(Objective):
        """Repeat the first tokens of a chunk."""

        frames = {"decoder": JOINED_PAIR, "encoder-decoder": PAIR}
        repeated: int = 2

        def raw_lengths(self, length, mode):
            return length, min(length, self.repeated)

        def corrupt(self, ids, rng, mode, word_starts):
            return Example(ids, ids[: self.repeated], np.arange(len(ids)) < self.repeated)

    monkeypatch.setitem(OBJECTIVES, "echo", Echo)
    objective = make_objective("echo", tokenizers["encoder-decoder"], "encoder-decoder", repeated=3)
    eos, ids = objective.tokens.ids["eos"], ordinary(objective, rng, 10)
    example = objective(ids, rng)
    assert example.source.tolist() == [*ids, eos] and example.target.tolist() == [*ids[:3], eos]
    assert objective.capacity(64, None) == (64, 4) and objective.options == {"repeated": 3}
    with pytest.raises(ValueError, match="unknown option 'repeat'; did you mean 'repeated'"):
        make_objective("echo", tokenizers["encoder-decoder"], "decoder", repeat=3)
    with pytest.raises(ValueError, match="objective='ecko': must be one of causal, .*, echo"):
        make_objective("ecko", tokenizers["decoder"], "decoder")


@pytest.mark.parametrize(
    ("name", "stack", "options", "message"),
    [
        ("mlm", "encoder", {}, "objective='mlm'.*causal, masked_lm"),
        ("causal", "both", {}, "stack='both'.*decoder, encoder"),
        ("causal", "encoder", {}, "cannot train stack='encoder'; legal there are masked_lm"),
        ("masked_lm", "encoder", {"mask_probabilty": 0.2}, "did you mean 'mask_probability'"),
        ("masked_lm", "encoder", {"word_starts": []}, "unknown option 'word_starts'"),
        ("masked_lm", "encoder", {"mask_probability": 1.2}, "mask_probability=1.2"),
        ("masked_lm", "encoder", {"mask_share": 0.9, "random_share": 0.2}, "sum to at most 1"),
        ("span_corruption", "encoder-decoder", {"noise_density": 0}, "noise_density=0"),
        ("span_corruption", "encoder-decoder", {"mean_span_length": 0.5}, "mean_span_length=0.5"),
        ("span_corruption", "decoder", {}, "no sentinels"),
        ("bart", "encoder-decoder", {"mask_ratio": 1}, "mask_ratio=1"),
        ("prefix_lm", "decoder", {"shortest": 0.8}, "shortest=0.8"),
        ("ul2", "encoder-decoder", {"weights": [1]}, "must be 7 numbers"),
        ("ul2", "encoder-decoder", {"denoisers": [["Q", 0.1, 3]]}, "mode='Q'"),
        ("causal", "decoder", {"decoder_start_token_id": 3}, "decoder_start_token_id=3"),
    ],
)
def test_bad_options(tokenizers, name, stack, options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(name, tokenizers.get(stack, tokenizers["decoder"]), stack, **options)


def test_missing_special_tokens_are_named(tokenizers):
    with pytest.raises(ValueError, match="has no mask_token, which masked_lm needs"):
        make_objective("masked_lm", tokenizers["decoder"], "encoder")
    with pytest.raises(ValueError, match="has no eos_token, which objective 'causal' needs"):
        make_objective("causal", tokenizers["encoder"], "decoder")
