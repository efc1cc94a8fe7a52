"""Padding, on either side, changes nothing for the real tokens."""

import pytest
import torch
from transformers import DynamicCache
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

import hf_llm
from hf_llm import (
    LLMDecoderForSequenceClassification,
    LLMEncoderDecoderForSequenceClassification,
    LLMEncoderForMultipleChoice,
    LLMEncoderForSequenceClassification,
)
from hf_llm.models.stack import default_positions

from .tiny import EXPERTS, STACKS, logits_of, redraw, tiny_config, tiny_model, tokens


LENGTHS = {"": (9, 6, 2), "decoder_": (4, 7, 5)}
RELATIVE = {
    "rope": {},
    "rope_window": {"layer_types": "SL", "sliding_window": 3},
    "alibi": {"position_embedding": "alibi"},
    "relative_bias": {"position_embedding": "relative_bias"},
    "none": {"position_embedding": "none"},
    "experts": EXPERTS,
}
ABSOLUTE = {
    "learned": {"position_embedding": "learned"},
    "learned_offset": {"position_embedding": "learned", "position_offset": 2},
    "sinusoidal": {"position_embedding": "sinusoidal"},
}


def rows_of(stack: str) -> list[dict[str, torch.Tensor]]:
    """Three texts of different lengths, each as a batch of its own."""
    halves = ("", "decoder_") if stack == "encoder_decoder" else ("",)
    return [
        {f"{half}input_ids": tokens(1, LENGTHS[half][row], seed=10 * row + len(half)) for half in halves}
        for row in range(3)
    ]


def pad(rows: list[dict[str, torch.Tensor]], side: str, positions: bool = False) -> dict[str, torch.Tensor]:
    """One batch of several texts, with attention masks and, if wanted, the position of each token in its text."""
    batch = {}
    for half in ("", "decoder_"):
        texts = [row[f"{half}input_ids"] for row in rows if f"{half}input_ids" in row]
        longest = max((text.shape[1] for text in texts), default=0)
        for name, value_of in (
            ("input_ids", lambda text: text),
            ("attention_mask", torch.ones_like),
            ("position_ids", lambda text: torch.arange(text.shape[1])[None]),
        ):
            if texts and (positions or name != "position_ids"):
                widths = [longest - text.shape[1] for text in texts]
                padded = [
                    torch.nn.functional.pad(value_of(text), (width, 0) if side == "left" else (0, width))
                    for text, width in zip(texts, widths)
                ]
                batch[f"{half}{name}"] = torch.cat(padded)
    return batch


def assert_padding_is_nothing(model, stack: str, side: str, positions: bool) -> None:
    rows = rows_of(stack)
    batch = pad(rows, side, positions)
    logits = logits_of(model, batch)
    real = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    for row, text in enumerate(rows):
        torch.testing.assert_close(logits[row, real[row]], logits_of(model, text)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ("left", "right"))
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("backend", ("eager", "sdpa"))
def test_padding_is_nothing_to_relative_positions(name, stack, side, backend):
    """Each text alone gives the logits that it gives in a padded batch."""
    assert_padding_is_nothing(tiny_model(stack, backend, **RELATIVE[name]), stack, side, positions=False)


@pytest.mark.parametrize("side", ("left", "right"))
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", ABSOLUTE)
def test_padding_is_nothing_to_absolute_positions_that_are_passed(name, stack, side):
    assert_padding_is_nothing(tiny_model(stack, **ABSOLUTE[name]), stack, side, positions=True)


@pytest.mark.parametrize("side", ("left", "right"))
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("source", ("attention_mask", "input_ids"))
def test_positions_counted_over_real_tokens_need_not_be_passed(source, stack, side):
    model = tiny_model(stack, position_embedding="learned", position_offset=2, position_ids_source=source)
    assert_padding_is_nothing(model, stack, side, positions=False)


def test_positions_from_arange_count_padding():
    """BERT's and GPT-2's way: right padding is nothing, left padding shifts absolute positions."""
    model = tiny_model("decoder", position_embedding="learned")
    assert_padding_is_nothing(model, "decoder", "right", positions=False)
    with pytest.raises(AssertionError):
        assert_padding_is_nothing(model, "decoder", "left", positions=False)


@pytest.mark.parametrize("source", ("arange", "attention_mask", "input_ids"))
def test_positions_go_on_behind_a_cache(source):
    """Chunks of a left-padded batch, without positions, give what the whole gives."""
    model = tiny_model("decoder", position_embedding="learned", position_ids_source=source)
    batch = pad(rows_of("decoder"), "left")
    expected = logits_of(model, batch)
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for end in (4, 8, 9):
        chunk = {
            "input_ids": batch["input_ids"][:, start:end],
            "attention_mask": batch["attention_mask"][:, :end],
        }
        logits.append(logits_of(model, chunk, past_key_values=cache))
        start = end
    real = batch["attention_mask"].bool()
    if source == "input_ids":  # RoBERTa's rule counts the tokens of the cache, padding included
        real = real.clone()
        real[1:] = False
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], expected[real], rtol=0, atol=1e-5)


def test_positions_from_input_ids_are_robertas():
    """Real tokens count from `position_offset`, padding has the row before it."""
    config = tiny_config("encoder", position_embedding="learned", position_offset=2, position_ids_source="input_ids",
                         pad_token_id=1)  # fmt: skip
    ids = torch.tensor([[5, 6, 7, 1, 1], [1, 8, 9, 5, 1]])
    positions = default_positions(config, ids, ids, None, 0)
    expected = RobertaEmbeddings.create_position_ids_from_input_ids(ids, padding_idx=1)
    assert (positions + config.position_offset).equal(expected)


# -- pooling ----------------------------------------------------------------------------------------------------------


CLASSIFIERS = {
    "decoder": LLMDecoderForSequenceClassification,
    "encoder": LLMEncoderForSequenceClassification,
    "encoder_decoder": LLMEncoderDecoderForSequenceClassification,
}


@pytest.mark.parametrize(
    ("stack", "side", "with_mask"),
    [
        ("decoder", "left", True),
        ("decoder", "right", True),
        ("decoder", "right", False),  # by `pad_token_id`; causal attention does not see it on the right
        ("encoder", "left", True),
        ("encoder", "right", True),
        ("encoder_decoder", "right", True),
    ],
)
def test_padding_is_nothing_to_a_classifier(stack, side, with_mask):
    """The state that is classified is that of real tokens."""
    model = redraw(CLASSIFIERS[stack](tiny_config(stack))).eval()
    rows = [{"input_ids": row["input_ids"]} for row in rows_of(stack)]
    batch = pad(rows, side)
    if not with_mask:
        del batch["attention_mask"]
    alone = torch.cat([logits_of(model, row) for row in rows])
    torch.testing.assert_close(logits_of(model, batch), alone, rtol=0, atol=1e-5)


def test_a_classifier_reads_the_target_that_it_is_given():
    """Of another length than the source: its last real token is classified."""
    model = redraw(LLMEncoderDecoderForSequenceClassification(tiny_config("encoder_decoder"))).eval()
    rows = rows_of("encoder_decoder")
    alone = torch.cat([logits_of(model, row) for row in rows])
    torch.testing.assert_close(logits_of(model, pad(rows, "right")), alone, rtol=0, atol=1e-5)


def test_a_classifier_that_cannot_see_the_end_says_so():
    config = tiny_config("decoder", pad_token_id=None)
    model = LLMDecoderForSequenceClassification(config).eval()
    with pytest.raises(ValueError, match="pad_token_id"):
        model(tokens(2, 5))
    assert model(tokens(1, 5)).logits.shape == (1, 2)


def test_padding_is_nothing_to_multiple_choice():
    model = redraw(LLMEncoderForMultipleChoice(tiny_config("encoder"))).eval()
    rows = rows_of("encoder")[:2]
    batch = {name: value[None] for name, value in pad(rows, "right").items()}
    expected = torch.cat([logits_of(model, {"input_ids": row["input_ids"][None]}) for row in rows], dim=1)
    torch.testing.assert_close(logits_of(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", ("Decoder", "EncoderDecoder"))
@pytest.mark.parametrize("task", ("SequenceClassification", "TokenClassification", "QuestionAnswering"))
def test_task_heads_make_a_cache_on_request_alone(stack, task):
    """With one, the layers would run on padding where attention takes lengths."""
    config = tiny_config("decoder" if stack == "Decoder" else "encoder_decoder")
    model = getattr(hf_llm, f"LLM{stack}For{task}")(config)
    caches = []
    model.model.register_forward_hook(lambda module, args, output: caches.append(output.past_key_values))
    for training in (True, False):
        model.train(training)(tokens(1, 5))
    model(tokens(1, 5), use_cache=True)
    assert caches[:2] == [None, None] and caches[2] is not None
