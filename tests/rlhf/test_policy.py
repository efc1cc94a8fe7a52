"""Log-probabilities and values of padded micro-batches against one text at a time through an untouched model."""

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from . import toys


IDS = {"vocab_size": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
WIDTH = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


def _bart():
    sizes = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in SEQ2SEQ.items()}
    config = BartConfig(**IDS, **sizes, d_model=32, max_position_embeddings=64, decoder_start_token_id=2)
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


SEQ2SEQ = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
POLICIES = {
    "decoder": toys.decoder,
    "decoder with scale and cap": lambda: toys.decoder(
        logit_scale=3.0, final_logit_softcapping=2.0, position_embedding="learned"
    ),
    "encoder-decoder": toys.encoder_decoder,
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**IDS, n_layer=2, n_embd=32, n_head=2, n_positions=64)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**IDS, **WIDTH, num_hidden_layers=1, intermediate_size=32)),
    "Bloom": lambda: BloomForCausalLM(BloomConfig(**IDS, n_layer=1, hidden_size=32, n_head=2)),
    "Mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**IDS, **WIDTH, num_hidden_layers=1, intermediate_size=32, num_local_experts=4)
    ),
    "T5": lambda: T5ForConditionalGeneration(
        T5Config(**IDS, num_layers=1, d_model=32, num_heads=2, d_kv=16, d_ff=32, decoder_start_token_id=0)
    ),
    "BART": _bart,
}
PROMPTS = [[3, 4, 5, 6], [7], [8, 9]]
COMPLETIONS = [[5, 1], [6, 7, 8, 9, 1], [1]]  # the last one is an end token and nothing else


def plain_scores(model, backbone, head, prompt, completion, temperature):
    """Log-probabilities, entropies and values of one completion, without padding and without PPO's code."""
    prompt, target = torch.tensor([prompt]), torch.tensor([completion])
    if model.config.is_encoder_decoder:
        start = torch.full((1, 1), model.config.decoder_start_token_id)
        inputs = {"input_ids": prompt, "decoder_input_ids": torch.cat([start, target[:, :-1]], 1)}
        first = 0
    else:
        inputs = {"input_ids": torch.cat([prompt, target[:, :-1]], 1)}
        first = prompt.shape[1] - 1
    logits = model(**inputs, use_cache=False).logits[0, first:].float() / temperature
    log_probs = logits.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    values = head(backbone(**inputs, use_cache=False)[0][0, first:]).squeeze(-1)
    return log_probs.gather(-1, target[0, :, None]).squeeze(-1), entropy, values


@pytest.mark.parametrize("critic", ["policy", "shared"])
@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_scores_are_those_of_single_texts(name, critic, tmp_path):
    torch.manual_seed(0)
    policy = POLICIES[name]()
    untouched = copy.deepcopy(policy).eval()
    run = toys.trainer(tmp_path, policy, critic=critic, temperature=0.7, per_device_train_batch_size=2)
    run.model.train()
    scored = run._score_completions(run._pad(PROMPTS, COMPLETIONS))
    backbone = run.critic.backbone
    if critic == "shared":
        backbone = untouched.base_model
        if backbone is untouched:  # T5 has none inside
            backbone = copy.deepcopy(toys.trainer(tmp_path, copy.deepcopy(untouched)).critic.backbone)
    backbone = backbone.eval()
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS)):
        expected = plain_scores(untouched, backbone, run.critic.value_head, prompt, completion, 0.7)
        for key, values in zip(("log_probs", "entropy", "token_values"), expected):
            found = scored[key][row]
            torch.testing.assert_close(found[: len(completion)], values, rtol=1e-5, atol=2e-5, msg=f"{key} {row}")
            assert not found[len(completion) :].any()
        torch.testing.assert_close(scored["ref_log_probs"][row], scored["log_probs"][row], rtol=0, atol=0)


@pytest.mark.parametrize("make", [toys.decoder, toys.encoder_decoder], ids=["decoder", "encoder-decoder"])
def test_pad_may_be_the_end_token(make, tmp_path):
    """Masks come from lengths: the end token that was chosen counts, those behind it do not."""
    tokenizers = {pad: toys.make_tokenizer(pad_token=pad) for pad in ("<pad>", "<eos>")}
    tokenizers["<eos>"].pad_token = None  # the end token takes its place
    scored = {}
    for pad, tokenizer in tokenizers.items():
        run = toys.trainer(tmp_path, make(), arguments={"processing_class": tokenizer})
        batch = run._pad(PROMPTS, COMPLETIONS)
        assert batch["completion_mask"].sum(1).tolist() == [len(ids) for ids in COMPLETIONS]
        assert batch["completion_ids"][0, -1] == tokenizer.pad_token_id
        run.model.train()
        scored[pad] = run._score_completions(batch)
    for name in scored["<pad>"]:
        if name != "token_values":  # whose heads are drawn anew
            torch.testing.assert_close(scored["<pad>"][name], scored["<eos>"][name], rtol=0, atol=1e-6)


def test_dropout_is_off_everywhere_and_saved_models_keep_theirs(tmp_path):
    policy = toys.decoder(residual_dropout=0.5, attention_dropout=0.5, embedding_dropout=0.5, activation_dropout=0.5)
    run = toys.trainer(tmp_path / "run", policy)
    run.model.train()
    batch = run._pad(PROMPTS, COMPLETIONS)
    one, other = (run._score_completions(batch) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(one["log_probs"], one["ref_log_probs"])
    run.save_model(str(tmp_path / "saved"))
    saved = type(policy.config).from_pretrained(tmp_path / "saved")
    assert saved.residual_dropout == saved.attention_dropout == saved.embedding_dropout == 0.5
    assert policy.config.attention_dropout == 0


def test_generation_settings_of_a_model_have_no_part_in_rollouts(tmp_path):
    """A model that would search with beams and force tokens samples from its own distribution."""
    policy = _bart()
    policy.generation_config.update(num_beams=2, forced_eos_token_id=1, no_repeat_ngram_size=1, min_new_tokens=3)
    with torch.no_grad():
        policy.final_logits_bias[:] = torch.tensor([0.0, 0, 0, *[50.0] + [0.0] * 12])  # it always says "a"
    run = toys.trainer(tmp_path, policy)
    run.model.train()
    assert run._generate_single_turn([[3, 4], [5]], None, {}) == [[3] * 6] * 2
    assert policy.generation_config.num_beams == 2
