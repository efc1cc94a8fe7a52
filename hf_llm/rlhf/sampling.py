"""The part of [`PPOTrainer`] that samples completions, scores them and estimates advantages."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from .advantages import explained_variance, gae, per_token_kl, token_rewards, whiten
from .checks import check_lengths
from .critic import base_of
from .policy import CompletionScores, completion_inputs, without_critic
from .rollout import by_length, lengths_of, trimmed
from .trl_internals import disable_gradient_checkpointing, pad, unwrap_model_for_generation, use_adapter


class SamplesRollouts:
    """Mixin for TRL's RLOOTrainer: its `_generate` and `_calculate_rewards` serve as they are."""

    def _prepare_inputs(self, generation_batch):
        """In training, the next micro-batch of the current or a new rollout; in evaluation, a rollout for the log."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        epoch, index = divmod(self._step % self._steps_per_rollout, self.args.steps_per_generation)
        if epoch == index == 0:
            self._stopped_early = False
            self._rollout = self._make_rollout(self._generate_and_score_completions(generation_batch))
        accumulation = self.args.gradient_accumulation_steps
        tokens = self._rollout.tokens(epoch).view(-1, accumulation)[index // accumulation].sum()
        return {**self._rollout.micro_batch(epoch, index), "minibatch_tokens": self._sum_over_ranks(tokens).item()}

    def _sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields):
        base = base_of(self.model)
        check_lengths("prompt", [len(ids) for ids in prompt_ids], base, self.max_completion_length)
        with without_critic(base), plain_generation(base), self._sampled_by_a_copy():
            if not base.config.is_encoder_decoder:
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
            unwrapped = unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            )
            with unwrapped as model, torch.no_grad():
                return sample(model, prompt_ids, self.generation_config)

    @contextlib.contextmanager
    def _sampled_by_a_copy(self) -> Iterator[None]:
        """Continuous batching casts the model that it is given to bfloat16 or float16: that must not be the one whose
        master weights are trained."""
        wrapped, was_training = self.model_wrapped, self.model.training
        if self.use_transformers_continuous_batching and (self.args.bf16 or self.args.fp16):
            self.model_wrapped = copy.deepcopy(self.accelerator.unwrap_model(wrapped))
            vars(base_of(self.model_wrapped)).pop("forward", None)  # it is bound to the original
        try:
            yield
        finally:
            self.model_wrapped = wrapped
            wrapped.train(was_training)

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Sample completions of prompts, score them, and estimate advantages.

        Returns:
            What a [`Rollout`] holds, all (batch, ...), in the order of its first pass.
        """
        args, training = self.args, self.model.training
        prompts = [example["prompt"] for example in inputs]
        prompt_ids, completion_ids, completions = self._generate(prompts)
        # (batch of all ranks, rewards)
        rewards = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        first = self.accelerator.process_index * len(prompts)
        scores = self._combine(rewards, training)[first : first + len(prompts)]
        ended = torch.tensor([ids[-1] in self.eos_token_ids for ids in completion_ids], device=scores.device)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * ~ended

        batch = self._pad(prompt_ids, completion_ids)
        order = torch.arange(len(prompts))
        if training:
            minibatch = args.per_device_train_batch_size * args.gradient_accumulation_steps
            order = by_length(torch.randperm(len(prompts)), lengths_of(batch), minibatch)
        order = order.to(scores.device)
        back = order.argsort()  # rewards and tables are in the order of the prompts
        batch = {name: tensor[order] for name, tensor in batch.items()}
        scored = self._score_completions(batch)
        values, mask, lengths = scored["token_values"], batch["completion_mask"], batch["completion_mask"].sum(1)
        kl = per_token_kl(scored["log_probs"], scored["ref_log_probs"], args.kl_estimator) * mask
        raw = token_rewards(scores[order], kl, self.kl.coefficient, mask, lengths)
        shaped = whiten(raw, mask, shift_mean=False, reduce=self._sum_over_ranks) if args.whiten_rewards else raw
        advantages, returns = gae(shaped, values, mask, args.gamma, args.lam)
        explained = explained_variance(values, returns, mask, self._sum_over_ranks)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum_over_ranks)

        per_row = {"kl": kl.sum(1)[back], "total_reward": raw.sum(1)[back], "eos_rate": ended.float()}
        per_row = {name: self.accelerator.gather(value) for name, value in per_row.items()}
        entropy, tokens = self._sum_over_ranks(torch.stack([(scored["entropy"] * mask).sum(), mask.sum()])).tolist()
        self._log_rollout(prompts, completions, rewards, per_row, entropy / tokens, explained.item())
        mean_advantages = self.accelerator.gather(((advantages * mask).sum(1) / lengths)[back])
        self._logs["advantages"].extend(mean_advantages.tolist())
        if training:
            self.kl.update(per_row["kl"].mean().item(), len(per_row["kl"]))
        old = {"old_log_probs": scored["log_probs"], "old_values": values}
        return {**batch, **old, "advantages": advantages, "returns": returns}

    def _combine(self, rewards: torch.Tensor, training: bool) -> torch.Tensor:
        """Scores (batch of all ranks,) from rewards (batch of all ranks, functions): weighted, normalized, clipped."""
        missing = torch.isnan(rewards).all(1)
        if missing.any():
            index = missing.nonzero()[0].item()
            raise ValueError(f"no reward function returned a number for completion {index} of the rollout")
        scores = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        if self.args.normalize_scores:
            if training:
                self.score_moments.update(scores)
            scores = self.score_moments.normalize(scores)
        return scores if self.reward_clip_range is None else scores.clamp(*self.reward_clip_range)

    def _pad(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Rectangular ids and masks. Masks come from lengths: pad and end token may be the same."""
        sides = {"prompt": "left" if self.start_token_id is None else "right", "completion": "right"}
        batch = {}
        for name, rows in (("prompt", prompt_ids), ("completion", completion_ids)):
            ids = [torch.tensor(row) for row in rows]
            mask = [torch.ones_like(row) for row in ids]
            batch[f"{name}_ids"] = pad(ids, self._tokenizer.pad_token_id, padding_side=sides[name])
            batch[f"{name}_mask"] = pad(mask, 0, padding_side=sides[name])
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    @torch.no_grad()
    def _score_completions(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Log-probabilities, entropies and values of the policy, and log-probabilities of the reference, each
        (batch, completion) float32, 0 behind completions; in the micro-batches in which they are trained on."""
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        names = ("log_probs", "entropy", "token_values", "ref_log_probs")
        scored = {name: torch.zeros(batch["completion_ids"].shape, device=self.accelerator.device) for name in names}
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            for start in range(0, len(batch["completion_ids"]), size):
                rows = slice(start, start + size)
                part = trimmed({name: tensor[rows] for name, tensor in batch.items()})
                width = part["completion_ids"].shape[1]
                output = self._forward(self.model, part, with_entropy=True)
                for name in ("log_probs", "entropy", "token_values"):
                    scored[name][rows, :width] = output[name] * part["completion_mask"]
                scored["ref_log_probs"][rows, :width] = self._reference_log_probs(part, output.log_probs)
        return scored

    def _reference_log_probs(self, part: dict[str, torch.Tensor], log_probs: torch.Tensor) -> torch.Tensor:
        if self.args.kl_coef == 0:
            reference = log_probs
        elif self.ref_model is not None:
            reference = self._forward(self.ref_model, part).log_probs
        else:
            adapter = "ref" if "ref" in self.model.peft_config else None
            with without_critic(base_of(self.model)), use_adapter(self.model, adapter):
                reference = self._forward(self.model, part).log_probs
        return reference * part["completion_mask"]

    def _forward(self, model: nn.Module, batch: dict[str, torch.Tensor], **kwargs) -> CompletionScores:
        inputs = completion_inputs(batch, self.start_token_id, self._takes_positions)
        with self.accelerator.autocast():
            return model(**inputs, temperature=self.temperature, **kwargs)


# ---- generating -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Ignore a model's own generation settings (beams, forced tokens, penalties, ...): completions must come from the
    distribution whose probabilities PPO compares."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    routed = getattr(model.config, "output_router_logits", False)
    if routed:  # transformers' models with experts cannot return router logits while they generate
        model.config.output_router_logits = False
    try:
        yield
    finally:
        model.generation_config = own
        if routed:
            model.config.output_router_logits = True


def sample(
    model: PreTrainedModel, prompt_ids: list[list[int]], generation_config: GenerationConfig
) -> list[list[int]]:
    """Sample from a language model, all prompts at once.

    Returns:
        `num_return_sequences` completions of each prompt: token ids up to the first end token, that included.
    """
    encoder_decoder = model.config.is_encoder_decoder
    prompts, side = [torch.tensor(ids) for ids in prompt_ids], "right" if encoder_decoder else "left"
    ids = pad(prompts, padding_value=generation_config.pad_token_id, padding_side=side)
    mask = pad([torch.ones_like(prompt) for prompt in prompts], padding_value=0, padding_side=side)
    sequences = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=generation_config
    )
    completions = sequences[:, 1 if encoder_decoder else ids.shape[1] :].tolist()  # after the start, or the prompt
    ends = generation_config.eos_token_id
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row)) + 1] for row in completions]
