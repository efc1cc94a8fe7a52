"""Documents by their ids and by their lengths, and which form of them each attention backend is given."""

import pytest
import torch
from torch.nn import functional as F

from hf_llm.models import visibility
from hf_llm.models.visibility import AttentionInputs, Documents, Visibility, mark_padding

from .tiny import STACKS, alone, documents_of, logits_of, packed_batch, target_documents, tiny_model


PACKED = Documents(torch.tensor([[-1, 0, 0, 0, 1, 1], [0, 1, 1, -1, 2, -1]]))


def test_documents_begin_where_their_ids_change():
    assert PACKED.begins().int().tolist() == [[1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1]]
    assert PACKED.positions().tolist() == [[0, 0, 1, 2, 0, 1], [0, 0, 1, 0, 0, 0]]


def test_lengths_of_documents():
    """Row by row, without padding or with each stretch of it as a segment."""
    for keep_padding, expected in ((False, [3, 2, 1, 2, 1]), (True, [1, 3, 2, 1, 2, 1, 1, 1])):
        queries, keys = PACKED.lengths(PACKED, keep_padding)
        assert queries.tolist() == keys.tolist() == expected


def test_lengths_of_documents_that_one_side_lacks():
    source = Documents(torch.tensor([[0, 0, 1, -1], [1, 1, 1, 3]]))
    queries, keys = PACKED.lengths(source, keep_padding=False)
    assert list(zip(queries.tolist(), keys.tolist())) == [(3, 2), (2, 1), (1, 0), (2, 3), (1, 0), (0, 1)]


def test_repad_is_the_inverse_of_unpad():
    states = torch.randn(2, 6, 3)
    row = PACKED.unpad(states)
    assert row.shape == (1, 9, 3) and row[0].equal(states[PACKED.ids >= 0])
    assert PACKED.repad(row).equal(states * (PACKED.ids >= 0)[..., None])
    positions = torch.arange(6)[None]  # the same for each row
    assert PACKED.unpad(positions)[0].tolist() == [1, 2, 3, 4, 5, 0, 1, 2, 4]


def test_a_mask_marks_padding():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert mark_padding(None, None) is None and mark_padding(None, torch.ones_like(mask)) is None
    assert mark_padding(None, mask).ids.tolist() == [[0, 0, 0], [0, 0, -1]]
    assert mark_padding(Documents(torch.tensor([[0, 1, 1], [0, 1, 2]])), mask).ids.tolist() == [[0, 1, 1], [0, 1, -1]]


@pytest.mark.parametrize("stack", STACKS)
def test_sdpa_needs_no_lengths(stack, monkeypatch):
    """Where no attention function on this machine takes lengths, masks give the same."""
    model, batch = tiny_model(stack), packed_batch(stack)
    real = target_documents(batch) >= 0
    expected = logits_of(model, batch)[real]
    monkeypatch.delitem(visibility.LENGTHS, "sdpa", raising=False)
    logits = logits_of(model, batch)
    torch.testing.assert_close(logits[real], expected, rtol=0, atol=1e-5)
    single = alone(batch, row=0, document=1)
    ours = logits[0, target_documents(batch)[0] == 1]
    torch.testing.assert_close(ours[None], logits_of(model, single), rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_masks", (True, False))
def test_an_attention_function_says_how_it_takes_documents(has_masks, monkeypatch):
    """One that has masks is given lengths for packed documents alone; one that has none, for padding too."""
    calls = []

    def arguments(queries, keys):
        calls.append(queries.tolist())
        return {}

    monkeypatch.setitem(visibility.LENGTHS, "sdpa", visibility.TakesLengths(arguments, has_masks=has_masks))
    stack = tiny_model("decoder").model
    states, mask = torch.randn(2, 6, 32), F.pad(torch.ones(2, 5, dtype=torch.long), (0, 1))
    ids = documents_of([[4, 2], [6]], 6)
    assert Visibility(stack, states, Documents(ids), None, {}).rows.ids.equal(ids)
    assert calls == [[4, 2, 6]]
    padded = Visibility(stack, states, None, mask, {})
    assert (padded.rows is None) == has_masks
    for option in ({"output_hidden_states": True}, {"cu_seq_lens_q": ids}):
        assert Visibility(stack, states, Documents(ids), None, option).rows is None
    assert (Visibility(stack, states, Documents(ids), None, {"output_router_logits": True}).rows is None) == has_masks


def test_layers_of_one_type_share_one_mask():
    stack = tiny_model("decoder", "eager", layer_types="SLSL", num_hidden_layers=4, sliding_window=3).model
    seen = Visibility(stack, torch.randn(2, 6, 32), None, None, {}).layers
    assert set(seen) == {"sliding_attention", "full_attention"}
    assert all(isinstance(inputs, AttentionInputs) and inputs.mask.shape == (2, 1, 6, 6) for inputs in seen.values())
