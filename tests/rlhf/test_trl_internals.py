"""Canaries: what hf_llm.rlhf builds on in TRL. Where one of these fails, TRL has changed under it."""

import importlib.metadata
import inspect

import pytest
import torch
from packaging.specifiers import SpecifierSet

from hf_llm.rlhf import PPOConfig, PPOTrainer, trl_internals
from hf_llm.rlhf.config import _SAMPLING, _UNUSED


# overridden or called, with the parameters that are relied upon
METHODS = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
    "_generate": ["self", "prompts"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields"],
    "_get_train_sampler": ["self", "dataset"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_tokenize_prompts": ["self", "prompts"],
    "log": ["self", "logs", "start_time"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_clip_grad_norm": ["self", "model"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_rng_state": ["self", "output_dir"],
}
# attributes of RLOOTrainer that ours reads
ATTRIBUTES = (
    *("_buffered_inputs", "_logs", "_metrics", "_pending_extra_logs", "_pending_metrics", "_step", "_tokenizer"),
    *("aux_loss_enabled", "continuous_batching_config", "eos_token_ids", "epsilon_high", "epsilon_low"),
    *("generation_config", "log_completions", "max_completion_length", "num_generations", "ref_model"),
    *("reward_clip_range", "reward_func_names", "reward_weights", "router_aux_loss_coef", "shuffle_dataset"),
    *("temperature", "use_transformers_continuous_batching"),
)


def test_the_installed_version_is_supported():
    found = importlib.metadata.version("trl")
    assert found in SpecifierSet(trl_internals.SUPPORTED), f"TRL {found} was never tried: see hf_llm/rlhf"


@pytest.mark.parametrize("name", METHODS)
def test_signatures(name):
    method = getattr(trl_internals.RLOOTrainer, name, None)
    assert method is not None, f"TRL's RLOOTrainer has no {name} any more, which PPOTrainer builds on"
    found = list(inspect.signature(method).parameters)
    assert found == METHODS[name], f"RLOOTrainer.{name} takes {found} now: look through PPOTrainer's use of it"


def test_attributes():
    source = inspect.getsource(trl_internals.RLOOTrainer)
    missing = [name for name in ATTRIBUTES if f"self.{name}" not in source]
    assert not missing, f"TRL's RLOOTrainer does not set {missing} any more, which PPOTrainer reads"


def test_settings_are_sorted():
    """Every field of RLOOConfig is one that PPO passes on, or one that it refuses."""
    fields = set(inspect.signature(trl_internals.RLOOConfig).parameters)
    refused = set(_UNUSED) | set(_SAMPLING)
    assert refused <= fields, f"RLOOConfig lost {refused - fields}"
    known = {
        *("trust_remote_code", "model_init_kwargs", "router_aux_loss_coef", "disable_dropout", "num_generations"),
        *("num_generations_eval", "max_completion_length", "ds3_gather_for_generation", "shuffle_dataset"),
        *("pad_to_multiple_of", "generation_batch_size", "steps_per_generation", "temperature", "generation_kwargs"),
        *("chat_template_kwargs", "cache_implementation", "num_iterations", "epsilon", "epsilon_high"),
        *("reward_weights", "reward_clip_range", "ref_model_mixup_alpha", "ref_model_sync_steps", "log_completions"),
        *("log_multimodal", "num_completions_to_print", "log_unique_prompts", "use_transformers_paged"),
        *("use_transformers_continuous_batching", "transformers_continuous_batching_config"),
    }
    own = fields - set(inspect.signature(trl_internals.BaseConfig).parameters) - refused - known
    new = {name for name in own if "vllm" not in name}
    assert not new, f"RLOOConfig has new fields {sorted(new)}: decide in hf_llm/rlhf/config.py what they mean to PPO"


def test_overrides_are_few():
    """Large overrides of TRL's trainers rot: what PPO replaces is listed here, and each name stands for a reason."""
    inherited = {name for name in dir(trl_internals.RLOOTrainer) if callable(getattr(trl_internals.RLOOTrainer, name))}
    mixins = [c for c in PPOTrainer.__mro__ if c.__module__.startswith("hf_llm.rlhf")]
    replaced = {name for c in mixins for name in vars(c) if name in inherited and not name.startswith("__")}
    assert replaced <= {
        *METHODS,
        *("_load_best_model", "_run_epoch", "_save_run_state", "create_optimizer", "evaluation_loop"),
    }


def test_padding_and_log_probabilities():
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    assert trl_internals.pad(rows, padding_value=9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert trl_internals.pad(rows, padding_value=9, padding_side="left").tolist() == [[1, 2, 3], [9, 9, 4]]
    logits, chosen = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    log_probs, entropy = trl_internals.selective_log_softmax_and_entropy(
        logits, chosen, entropy_requires_grad=False, temperature=0.5
    )
    scaled = (logits / 0.5).log_softmax(-1)
    torch.testing.assert_close(log_probs, scaled.gather(-1, chosen[..., None]).squeeze(-1))
    assert trl_internals.selective_log_softmax(logits, chosen, 0.5).equal(log_probs)  # with or without, the same bits
    torch.testing.assert_close(entropy, -(scaled.exp() * scaled).sum(-1))


def test_ppo_settings_can_be_parsed_from_a_command_line(tmp_path):
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        [
            "--output_dir",
            str(tmp_path),
            "--kl_coef",
            "0.1",
            "--kl_target",
            "6",
            "--critic",
            "shared",
            "--bf16",
            "false",
        ]
    )
    assert (args.kl_coef, args.kl_target, args.critic, args.num_iterations) == (0.1, 6.0, "shared", 4)
