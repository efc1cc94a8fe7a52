"""Each mistake is one clear error, before the first rollout where it can be known."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig
from transformers import BertConfig, BertModel

from hf_llm.rlhf import PPOConfig

from . import toys


SETTINGS = {
    "kl_coef = -1, but it must be at least 0": {"kl_coef": -1},
    "lam = 1.5, but it must be from 0 to 1": {"lam": 1.5},
    "kl_estimator = 'k2', but it must be one of k1, k3": {"kl_estimator": "k2"},
    "critic = 'mine', but it must be one of auto, policy, reward_model, shared": {"critic": "mine"},
    "beta = 0.1 has no meaning in PPO: the KL coefficient is kl_coef": {"beta": 0.1},
    "normalize_advantages = True has no meaning in PPO": {"normalize_advantages": True},
    "auto_find_batch_size = True has no meaning in PPO": {"auto_find_batch_size": True},
    "top_p = 0.9: completions must be sampled from the policy itself": {"top_p": 0.9},
    "top_k = 50: completions must be sampled": {"top_k": 50},
    r"generation_kwargs\['num_beams'\] would change the distribution": {"generation_kwargs": {"num_beams": 2}},
    "temperature = 0, but it must be positive": {"temperature": 0},
    r"reward_weights = \[nan\], but they must be finite": {"reward_weights": [float("nan")]},
    r"reward_clip_range = \(1, -1\)": {"reward_clip_range": (1, -1)},
    "num_mini_batches = 2 and steps_per_generation = 4 are rollouts of different sizes": {
        "num_mini_batches": 2,
        "steps_per_generation": 4,
    },
    "generation_batch_size = 20 is not divisible by the minibatch of 8 per_device": {"generation_batch_size": 20},
    "steps_per_generation = 3 is not divisible by gradient_accumulation_steps = 2": {
        "steps_per_generation": 3,
        "gradient_accumulation_steps": 2,
    },
    "generation_batch_size = 8 is not divisible by num_generations = 3": {"num_generations": 3},
    "per_device_eval_batch_size x processes = 3 is not divisible by the 2 completions": {
        "num_generations": 2,
        "per_device_eval_batch_size": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    "save_steps = 5 does not align with rollouts, which serve for 4 optimizer steps": {
        "save_steps": 5,
        "save_strategy": "steps",
        "num_mini_batches": 2,
    },
}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings(message, tmp_path):
    with pytest.raises(ValueError, match=message):
        toys.settings(tmp_path, **SETTINGS[message])


def test_the_sizes_of_a_rollout(tmp_path):
    for given in ({"num_mini_batches": 3}, {"steps_per_generation": 6}, {"generation_batch_size": 48}):
        args = toys.settings(tmp_path, gradient_accumulation_steps=2, **given)
        sizes = (args.num_mini_batches, args.steps_per_generation, args.generation_batch_size, args.steps_per_rollout)
        assert sizes == (3, 6, 48, 6)
        assert dataclasses.replace(args, seed=1).steps_per_rollout == 6
    plain = PPOConfig(str(tmp_path), use_cpu=True)
    assert plain.generation_batch_size == plain.per_device_train_batch_size


def endless():
    tokenizer = toys.make_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


INPUTS = {
    "processing_class has no end token": {"processing_class": endless},
    'train_dataset has the columns .*, but none named "prompt"': {
        "train_dataset": lambda: toys.prompts().rename_column("prompt", "text")
    },
    "train_dataset has 4 prompts, fewer than the 8 of one rollout": {"train_dataset": lambda: toys.prompts(4)},
    "train_dataset: prompt 10 has 60 tokens, but max_completion_length = 6 leaves 58 of 64 positions": {
        "train_dataset": lambda: Dataset.from_dict({"prompt": ["a"] * 10 + ["a " * 60] + ["b"] * 9})
    },
    r"eval_dataset\['long'\]: prompt 0 has 99 tokens": {
        "eval_dataset": lambda: {
            "short": toys.prompts(8),
            "long": Dataset.from_dict({"prompt": ["a " * 99]}),
        }
    },
    "train_dataset: prompt 3 has no tokens": {
        "train_dataset": lambda: Dataset.from_dict({"prompt": ["a", "b", "c", ""] * 2})
    },
    "train_dataset: prompt 1 is None, neither a text nor a conversation": {
        "train_dataset": lambda: Dataset.from_dict({"prompt": ["a", None] * 4})
    },
    "reward_processing_classes has 2 entries for 1 reward_funcs": {"reward_processing_classes": lambda: [None, None]},
    "the critic's backbone BertModel looks at later tokens": {
        "value_model": lambda: BertModel(
            BertConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        )
    },
    "the critic's backbone LLMEncoderDecoderModel is an encoder-decoder, but the policy": {
        "value_model": toys.encoder_decoder
    },
    "the critic's backbone has embeddings for 9 tokens and the policy for 16": {
        "value_model": lambda: toys.decoder(vocab_size=9)
    },
    "peft_config = PromptTuningConfig: its virtual tokens": {
        "peft_config": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    },
}


@pytest.mark.parametrize("message", INPUTS)
def test_inputs(message, tmp_path):
    arguments = {name: make() for name, make in INPUTS[message].items()}
    with pytest.raises(ValueError, match=message):
        toys.trainer(tmp_path, arguments=arguments)


def test_encoder_decoders(tmp_path):
    long = Dataset.from_dict({"prompt": ["a " * 65] * 8})
    with pytest.raises(ValueError, match="prompt 0 has 65 tokens, but the encoder has 64 positions"):
        toys.trainer(tmp_path, toys.encoder_decoder(), arguments={"train_dataset": long})
    with pytest.raises(ValueError, match="max_completion_length = 65, but the decoder has 64 positions"):
        toys.trainer(tmp_path, toys.encoder_decoder(), max_completion_length=65)
    with pytest.raises(ValueError, match="use_transformers_continuous_batching = True, but .* is an encoder-decoder"):
        toys.trainer(tmp_path, toys.encoder_decoder(), use_transformers_continuous_batching=True)
    silent = toys.encoder_decoder()
    silent.config.decoder_start_token_id = silent.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="says neither decoder_start_token_id nor bos_token_id"):
        toys.trainer(tmp_path, silent)


def test_critics_that_cannot_be_made(tmp_path):
    with pytest.raises(ValueError, match='critic = "reward_model" needs exactly one reward model'):
        toys.trainer(tmp_path, critic="reward_model")
    other = {"reward_processing_classes": toys.make_tokenizer(toys.LETTERS[::-1])}
    with pytest.raises(ValueError, match="of the architecture and vocabulary of the policy"):
        toys.trainer(tmp_path, rewards=toys.reward_model(), arguments=other, critic="reward_model")


def test_a_policy_that_writes_nothing_or_not_all(tmp_path):
    with pytest.raises(ValueError, match="the policy has embeddings for 9 tokens, but processing_class has 15"):
        toys.trainer(tmp_path, toys.decoder(vocab_size=9))
    with pytest.raises(ValueError, match="LLMDecoderForSequenceClassification is no causal or seq2seq language model"):
        toys.trainer(tmp_path, toys.reward_model())


def test_a_long_prompt_in_a_stream(tmp_path):
    """A stream cannot be looked through: the error comes with the prompt, before it is generated from."""
    stream = Dataset.from_dict({"prompt": ["a"] * 12 + ["a " * 60] * 4}).to_iterable_dataset()
    run = toys.trainer(tmp_path, arguments={"train_dataset": stream}, shuffle_dataset=False, num_iterations=1)
    with pytest.raises(ValueError, match="prompt 4 has 60 tokens"):
        run.train()
    assert run.state.global_step == 1
    assert torch.isfinite(next(run.model.parameters())).all()
