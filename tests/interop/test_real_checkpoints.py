"""Real checkpoints, fetched out of packages: the same answers natively, imported, and after a round trip."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from hf_llm.data.checkpoints import fetch_checkpoint
from hf_llm.interop.folders import export_folder, import_folder

from . import parity


pytestmark = pytest.mark.slow

REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
SENTENCES = ["A man is eating food.", "Someone has a meal, and drinks water with it.", "The stock market fell."]


def round_trip(name, tmp_path):
    """Folders of a checkpoint: native, imported, and exported again, bit for bit what the first is."""
    no_place = ("embeddings.position_ids", "pooler.")  # a range that is no weight; a head that no task here reads
    native, ours, back = fetch_checkpoint(name), tmp_path / "ours", tmp_path / "back"
    import_folder(native, ours)
    export_folder(ours, back)
    before, after = (load_file(folder / "model.safetensors") for folder in (native, back))
    assert sorted(after) == sorted(tensor for tensor in before if not tensor.startswith(no_place))
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in after)
    return native, ours, back


@torch.no_grad()
def test_smollm2_answers_a_chat_prompt(tmp_path):
    answers = []
    for folder in round_trip("smollm2-135m-instruct", tmp_path):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        messages = [{"role": "user", "content": "Which city is the capital of France, and what is it known for?"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        tokens = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        answers.append((model.config.model_type, tokens.tolist(), tokenizer.decode(tokens)))
    assert [model_type for model_type, _, _ in answers] == ["llama", "hf_llm_decoder", "llama"]
    assert answers[0][1] == answers[1][1] == answers[2][1]
    assert "Paris" in answers[0][2]


@torch.no_grad()
def test_minilm_embeds_sentences(tmp_path):
    embeddings = []
    for folder in round_trip("all-minilm-l6-v2", tmp_path):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
        batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        embeddings.append(F.normalize(mean))
    for other in embeddings[1:]:
        assert (other - embeddings[0]).abs().max() <= parity.TOLERANCE
    similarity = embeddings[0] @ embeddings[0].T
    assert similarity[0, 1] > similarity[0, 2] + 0.2


@torch.no_grad()
def test_albert_fills_the_masks_of_reactions(tmp_path):
    filled = []
    for folder in round_trip("rxnmapper-albert", tmp_path):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
        batch = tokenizer(REACTION, return_tensors="pt")
        tokens = batch["input_ids"].clone()
        places = torch.arange(3, tokens.shape[1] - 1, 7)
        batch["input_ids"][0, places] = tokenizer.mask_token_id
        logits = model(**batch).logits[0, places]
        filled.append((logits.argmax(-1), logits))
        assert (filled[-1][0] == tokens[0, places]).float().mean() > 0.8
    for tokens, logits in filled[1:]:
        assert torch.equal(tokens, filled[0][0])
        parity.assert_close(logits, filled[0][1], "logits")
