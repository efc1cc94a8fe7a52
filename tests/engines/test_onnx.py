"""ONNX graphs of the three stacks by transformers' own exporter, saved, and run by ONNX Runtime on the CPU in float32:
within 1e-4 of torch for batches and lengths that the export did not see, padding included.
"""

import pytest
import torch
from models.tiny import EXPERTS, tiny_model, tokens
from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter


TOLERANCE = 1e-4
SHAPES = ((1, 1), (1, 5), (2, 9), (3, 17), (4, 40))  # batch, sequence
NEW = 12
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
VARIANTS = {
    "learned, post-norm": ("encoder", {"position_embedding": "learned", "norm_placement": "post"}),
    "alibi": ("decoder", {"position_embedding": "alibi"}),
    "relative bias": ("encoder_decoder", {"position_embedding": "relative_bias"}),
    "windows": ("decoder", SLIDING),
    "softcaps": ("decoder", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "experts": ("decoder", EXPERTS),
}


def inputs_of(stack: str, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Ids and a mask; some rows of longer batches are padded."""
    inputs = {"input_ids": tokens(batch, length, seed=length), "attention_mask": torch.ones(batch, length).long()}
    if length > 4:
        inputs["attention_mask"][0, -3:] = 0
    if stack == "encoder_decoder":
        inputs["decoder_input_ids"] = tokens(batch, length + 2, seed=length + 1)
    return inputs


def export(stack: str, model, folder) -> ExportedModel:
    """One graph whose batch and sequence axes are free, saved and opened again."""
    inputs = inputs_of(stack, 2, 9)
    free = {name: dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC) for name in inputs}
    no_cache = {} if stack == "encoder" else {"use_cache": False}
    OnnxExporter().export(model, inputs | no_cache, OnnxConfig(dynamic_shapes=free)).save_pretrained(folder)
    return ExportedModel.from_pretrained(folder)


def assert_agrees(stack: str, folder, **fields) -> None:
    model = tiny_model(stack, **fields)
    graph = export(stack, model, folder)
    for shape in SHAPES:
        inputs = inputs_of(stack, *shape)
        with torch.no_grad():
            expected = model(**inputs).logits
        actual = graph(**inputs).logits
        if stack != "encoder_decoder":  # padding is nobody's output
            real = inputs["attention_mask"].bool()
            actual, expected = actual[real], expected[real]
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_graph_of_a_decoder(tmp_path):
    assert_agrees("decoder", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["encoder", "encoder_decoder"])
def test_graphs_of_the_other_stacks(stack, tmp_path):
    assert_agrees(stack, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stack, fields", VARIANTS.values(), ids=VARIANTS)
def test_graphs_of_variants(stack, fields, tmp_path):
    assert_agrees(stack, tmp_path, **fields)


@pytest.mark.slow
def test_a_decoder_generates_with_its_cache(tmp_path):
    """Two graphs, one for the prompt and one for the tokens after it, give the greedy tokens of generate()."""
    model = tiny_model("decoder")
    prompt = {"input_ids": tokens(2, 7), "attention_mask": torch.ones(2, 7).long()}
    exported = OnnxExporter().export_for_generation(model, prompt, OnnxConfig(dynamic=True))
    exported.save_pretrained(tmp_path)
    graphs = ExportedModel.from_pretrained(tmp_path).runners

    ids = tokens(3, 11, seed=5)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=-1
    )
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    output = graphs["prefill"](input_ids=ids, position_ids=positions)
    found = [output.logits[:, -1].argmax(-1, keepdim=True)]
    for position in range(ids.shape[1], ids.shape[1] + NEW - 1):
        output = graphs["decode"](
            input_ids=found[-1],
            position_ids=torch.full_like(found[-1], position),
            past_key_values=output.past_key_values,
        )
        found.append(output.logits[:, -1].argmax(-1, keepdim=True))
    assert torch.equal(torch.cat(found, dim=1), expected[:, ids.shape[1] :])
