"""Documents packed into one row never see each other, on any stack and backend."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache

from hf_llm import LLMEncoderDecoderModel

from .tiny import (
    EXPERTS,
    STACKS,
    VOCABULARY,
    alone,
    inputs_of,
    logits_of,
    packed_batch,
    positions_of,
    target_documents,
    tiny_model,
    tokens,
)


pytestmark = [
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

WAYS = ("ids", "positions", "both", "ids+mask", "positions+mask")  # in which documents are given
BACKENDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
CONFIGURATIONS = {
    "default": {},
    "window": {"layer_types": "SL", "sliding_window": 3},
    "alibi": {"position_embedding": "alibi"},
    "relative_bias": {"position_embedding": "relative_bias", "relative_attention_bias_per_layer": True},
    "learned": {"position_embedding": "learned", "max_position_embeddings": 8},  # shorter than a row
    "experts": EXPERTS,
}
# on flash attention, biases are refused
PAIRS = [
    (name, backend)
    for name in CONFIGURATIONS
    for backend in BACKENDS
    if not (backend == "flash_attention_2" and name in ("alibi", "relative_bias"))
]


def given_by(batch: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """The batch with documents given by ids or by positions, with or without a mask of ones."""
    drop = {"ids": "position_ids", "positions": "document_ids"}.get(how.split("+")[0], "labels")
    batch = {name: value for name, value in batch.items() if not name.endswith(drop) and name != "labels"}
    if how.endswith("+mask"):
        for half in ("", "decoder_"):
            if f"{half}input_ids" in batch:
                batch[f"{half}attention_mask"] = torch.ones_like(batch[f"{half}input_ids"])
    return batch


def change_document(batch: dict[str, torch.Tensor], row: int, document: int) -> dict[str, torch.Tensor]:
    """The batch with every token of one document replaced by another, in source and target."""
    batch = dict(batch)
    for half in ("", "decoder_"):
        if f"{half}input_ids" in batch:
            chosen = batch[f"{half}document_ids"] == document
            chosen[torch.arange(len(chosen)) != row] = False
            ids = batch[f"{half}input_ids"]
            batch[f"{half}input_ids"] = torch.where(chosen, 3 + (ids + 17) % (VOCABULARY - 3), ids)
    return batch


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_no_document_sees_another(stack, name, backend, flash_kernels, uncompiled):
    """One document changes, every other document's output is the same to the bit (with experts, whose batches depend
    on all tokens, to 1e-6), however the documents are given."""
    model = tiny_model(stack, backend, **CONFIGURATIONS[name])
    batch = packed_batch(stack, padding=0, lengths=((4, 3, 5), (5, 7)), target_lengths=((3, 5, 2), (2, 8)))
    changed = change_document(batch, row=0, document=1)
    documents = target_documents(batch)
    others = documents != 1
    others[1] = True
    for how in ("ids", "positions+mask") if backend == "flex_attention" else WAYS:  # its masks take long
        before, after = logits_of(model, given_by(batch, how)), logits_of(model, given_by(changed, how))
        assert (before[~others] - after[~others]).abs().max() > 1e-3
        atol = 1e-6 if name == "experts" else 0
        torch.testing.assert_close(after[others], before[others], rtol=0, atol=atol, msg=f"{how}: documents leak")


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_packed_is_alone(stack, name, backend, flash_kernels, uncompiled):
    """Each document of a packed and padded batch gives what it gives as a batch of its own."""
    model = tiny_model(stack, backend, **CONFIGURATIONS[name])
    batch = packed_batch(stack)
    documents = target_documents(batch)
    by_ids, by_both = (logits_of(model, given_by(batch, how)) for how in ("ids", "both"))
    torch.testing.assert_close(by_both[documents >= 0], by_ids[documents >= 0], rtol=0, atol=1e-6)
    for row in range(len(documents)):
        for document in range(int(documents[row].max()) + 1):
            expected = logits_of(model, alone(batch, row, document))
            actual = by_ids[row, documents[row] == document][None]
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("train", (True, False))
def test_packed_loss_is_the_mean_over_tokens(stack, train):
    """The loss of a packed batch is the token-weighted mean of the documents' own losses."""
    model = tiny_model(stack).train(train)
    batch = packed_batch(stack)
    documents = target_documents(batch)
    total, count = 0.0, 0
    for row in range(len(documents)):
        for document in range(int(documents[row].max()) + 1):
            single = alone(batch, row, document)
            targets = int((single["labels"] != -100).sum())
            if targets:
                total += model(**single).loss.item() * targets
                count += targets
    assert count == int((batch["labels"] != -100).sum())
    assert model(**batch).loss.item() == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("train", (True, False))
def test_a_documents_first_token_is_never_a_target(how, train):
    """Also where the labels are simply the inputs."""
    model = tiny_model("decoder").train(train)
    batch = packed_batch("decoder", padding=0, lengths=((4, 3, 5), (5, 7)))
    expected = model(**batch).loss
    loss = model(**given_by(batch, how), labels=batch["input_ids"]).loss
    torch.testing.assert_close(loss, expected)
    everything = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    assert abs(everything - expected) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ("default", "window"))
@pytest.mark.parametrize("how", ("ids", "positions", "both", "positions+mask"))
def test_packed_documents_fill_a_cache_chunk_by_chunk(backend, name, how, flash_kernels, uncompiled):
    """Chunks that end inside and at the end of a document, with a cache that remembers the documents."""
    model = tiny_model("decoder", backend, **CONFIGURATIONS[name])
    batch = given_by(packed_batch("decoder", lengths=((4, 4, 5), (4, 9)), padding=0), how)
    expected = logits_of(model, batch, use_cache=False)
    for chunks in ((4, 3, 6), (6, 1, 6), (1, 12), (8, 5)):
        cache, logits, start = DynamicCache(config=model.config), [], 0
        for length in chunks:
            chunk = {name: value[:, start : start + length] for name, value in batch.items()}
            if "attention_mask" in batch:
                chunk["attention_mask"] = batch["attention_mask"][:, : start + length]
            logits.append(logits_of(model, chunk, past_key_values=cache, use_cache=True))
            start += length
        torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=0, atol=1e-5, msg=f"chunks {chunks}")


def test_documents_follow_the_rows_of_a_cache():
    """Repeated, chosen and reordered, as beams and returned sequences are; copied and pickled."""
    model = tiny_model("decoder")
    batch = given_by(packed_batch("decoder", padding=0, lengths=((4, 3, 5), (5, 7))), "both")
    start = {name: value[:, :8] for name, value in batch.items()}
    cache, rows = DynamicCache(config=model.config), torch.arange(2)
    logits_of(model, start, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0, 2]))
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    rows = rows.repeat_interleave(2)[[3, 0, 2]][[2, 0, 1]]
    for cached in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache):
        logits = logits_of(model, {"input_ids": batch["input_ids"][rows, 8:9]}, past_key_values=cached)
        expected = logits_of(model, {name: value[rows, :9] for name, value in batch.items()})[:, -1:]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", ("decoder", "encoder_decoder"))
@pytest.mark.parametrize("backend", ("eager", "sdpa"))
def test_a_generated_token_waits_for_no_value(stack, backend):
    """On the meta device there are no values: a synchronisation of an accelerator would be an error here."""
    model = tiny_model(stack, backend, layer_types="SL", sliding_window=4).to("meta")
    prompt = {name: value.to("meta") for name, value in inputs_of(stack).items()}
    cache = model(**prompt, use_cache=True).past_key_values
    half = "decoder_" if stack == "encoder_decoder" else ""
    length = prompt[f"{half}input_ids"].shape[1]
    prompt[f"{half}input_ids"] = prompt[f"{half}input_ids"][:, :1]
    positions = {f"{half}position_ids": torch.full((2, 1), length, device="meta")}
    output = model(**prompt, **positions, past_key_values=cache, use_cache=True)
    assert output.logits.shape == (2, 1, 64) and output.logits.is_meta


def test_a_cache_that_is_reset_forgets_its_documents():
    model = tiny_model("decoder")
    batch = given_by(packed_batch("decoder", padding=0, lengths=((4, 3, 5), (5, 7))), "both")
    cache = StaticCache(config=model.config, max_cache_len=16)
    logits_of(model, batch, past_key_values=cache)
    cache.reset()
    plain = {"input_ids": tokens(2, 6)}
    logits = logits_of(model, plain, past_key_values=cache)
    torch.testing.assert_close(logits, logits_of(model, plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_with_another_position_does_not_leave_its_document(backend, flash_kernels, uncompiled):
    """Positions that skip ahead are no new document; padding between documents changes nothing."""
    model = tiny_model("decoder", backend)
    skipping = {"input_ids": tokens(2, 8), "position_ids": torch.tensor([0, 1, 2, 9, 10, 11, 12, 13]).expand(2, -1)}
    plain = tiny_model("decoder", "eager", position_embedding="none")
    torch.testing.assert_close(
        logits_of(plain, skipping), logits_of(plain, {"input_ids": skipping["input_ids"]}), rtol=0, atol=1e-5
    )
    eager = tiny_model("decoder", "eager")
    torch.testing.assert_close(logits_of(model, skipping), logits_of(eager, skipping), rtol=0, atol=1e-5)

    gap = {
        "input_ids": tokens(1, 9),
        "position_ids": torch.tensor([[0, 1, 2, 0, 0, 0, 1, 2, 3]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1, 1]]),
    }
    logits = logits_of(model, gap)
    for document in (slice(0, 3), slice(5, 9)):
        expected = logits_of(model, {"input_ids": gap["input_ids"][:, document]})
        torch.testing.assert_close(logits[:, document], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_without_a_source_sees_no_other_source(backend, flash_kernels, uncompiled):
    """A document that only the decoder has attends to nothing in the encoder."""
    model = tiny_model("encoder_decoder", backend)
    batch = packed_batch("encoder_decoder", padding=0, lengths=((4, 8),), target_lengths=((3, 4, 3),))
    real = batch["decoder_document_ids"] >= 0
    before, after = logits_of(model, batch), logits_of(model, change_document(batch, row=0, document=0))
    lonely = batch["decoder_document_ids"] == 2
    torch.testing.assert_close(after[lonely], before[lonely], rtol=0, atol=0)
    expected = logits_of(tiny_model("encoder_decoder", "eager"), batch)
    torch.testing.assert_close(before[real], expected[real], rtol=0, atol=1e-5)


def test_one_packed_side_of_cross_attention_is_refused():
    model = tiny_model("encoder_decoder")
    batch = packed_batch("encoder_decoder", padding=0, lengths=((4, 8),), target_lengths=((3, 4),))
    source = {name: value for name, value in batch.items() if "decoder" not in name and name != "labels"}
    target = {"decoder_input_ids": batch["decoder_input_ids"]}
    with pytest.raises(ValueError, match="packed in the encoder"):
        model(**source, **target)
    with pytest.raises(ValueError, match="packed in the decoder"):
        model(
            input_ids=source["input_ids"],
            decoder_input_ids=batch["decoder_input_ids"],
            decoder_document_ids=batch["decoder_document_ids"],
        )


def test_document_ids_may_stand_for_the_padding_of_the_source_alone():
    """A source with document ids that say padding only, and a target without any."""
    model = tiny_model("encoder_decoder")
    source = tokens(2, 6)
    ids = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, -1, -1]])
    target = {"decoder_input_ids": tokens(2, 4, seed=1)}
    logits = logits_of(model, {"input_ids": source, "document_ids": ids} | target)
    expected = logits_of(model, {"input_ids": source, "attention_mask": (ids >= 0).long()} | target)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_document_ids_of_another_shape_are_refused():
    model = tiny_model("decoder")
    with pytest.raises(ValueError, match=r"`document_ids` has shape \(1, 5\).*\(1, 6\)"):
        model(tokens(1, 6), document_ids=torch.zeros(1, 5, dtype=torch.long))


@pytest.mark.parametrize("stack", STACKS)
def test_packed_gradients_are_those_of_the_documents_alone(stack):
    """The gradient of a packed batch is the token-weighted sum of the documents' gradients."""
    model = tiny_model(stack).train()
    batch = packed_batch(stack)
    documents = target_documents(batch)
    count = int((batch["labels"] != -100).sum())
    model(**batch).loss.backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row in range(len(documents)):
        for document in range(int(documents[row].max()) + 1):
            model(**alone(batch, row, document), num_items_in_batch=count).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, packed[name], rtol=1e-4, atol=1e-6)


def test_packed_sources_reach_the_base_model_too():
    """Without a head, and with encoder outputs that were computed before."""
    model = tiny_model("encoder_decoder").model
    assert isinstance(model, LLMEncoderDecoderModel)
    batch = {name: value for name, value in packed_batch("encoder_decoder").items() if name != "labels"}
    with torch.no_grad():
        whole = model(**batch)
        encoder_outputs = model.encoder(**{name: value for name, value in batch.items() if "decoder" not in name})
        del batch["input_ids"]
        again = model(**batch, encoder_outputs=encoder_outputs)
    assert torch.equal(whole.last_hidden_state, again.last_hidden_state)
    assert positions_of(batch["document_ids"]).equal(batch["position_ids"])
