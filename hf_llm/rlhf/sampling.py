"""The part of [`PPOTrainer`] that samples completions, scores them and estimates advantages."""

import torch
from torch import nn

from .advantages import explained_variance, gae, per_token_kl, token_rewards, whiten
from .checks import check_lengths
from .generation import generate_continuously, generate_targets, plain_generation
from .policy import CompletionScores, completion_inputs, without_critic
from .rollout import by_length, lengths_of, trimmed
from .saving import base_of
from .trl_internals import disable_gradient_checkpointing, pad, unwrap_model_for_generation, use_adapter


class SamplesRollouts:
    """Mixin for TRL's RLOOTrainer: its `_generate` and `_calculate_rewards` serve as they are."""

    def _prepare_inputs(self, generation_batch):
        """In training, the next micro-batch of the current rollout, or of a new one; in evaluation, metrics alone."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        epoch, index = divmod(self._step % self._steps_per_rollout, self.args.steps_per_generation)
        if epoch == index == 0:
            self._stopped_early = False
            self._rollout = self._make_rollout(self._generate_and_score_completions(generation_batch))
        if index == 0 or not self._minibatch_tokens:
            tokens = self._rollout.tokens(epoch).view(-1, self.args.gradient_accumulation_steps).sum(1)
            self._minibatch_tokens = self._sum_over_ranks(tokens).tolist()
        batch = self._rollout.micro_batch(epoch, index)
        return {**batch, "minibatch_tokens": self._minibatch_tokens[index // self.args.gradient_accumulation_steps]}

    def _sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields):
        base = base_of(self.model)
        check_lengths("prompt", [len(ids) for ids in prompt_ids], base, self.max_completion_length)
        continuous = self.use_transformers_continuous_batching
        with without_critic(base), plain_generation(base):
            if not (base.config.is_encoder_decoder or continuous):
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
            unwrapped = unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            )
            with unwrapped as model, torch.no_grad():
                if not continuous:
                    return generate_targets(model, prompt_ids, self.generation_config)
                dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
                return generate_continuously(
                    model, prompt_ids, self.generation_config, self.continuous_batching_config, dtype
                )

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Sample completions of prompts, score them, and estimate advantages.

        Returns:
            What a [`Rollout`] holds, all (batch, ...), in the order of its first pass.
        """
        training = self.model.training
        prompts = [example["prompt"] for example in inputs]
        prompt_ids, completion_ids, completions = self._generate(prompts)
        rewards = self._calculate_rewards(
            inputs, prompts, completions, completion_ids
        )  # (batch of all ranks, rewards)
        local = slice(
            self.accelerator.process_index * len(prompts), (self.accelerator.process_index + 1) * len(prompts)
        )
        ended = [ids[-1] in self.eos_token_ids for ids in completion_ids]
        scores = self._combine(rewards, training)[local]

        batch = self._pad(prompt_ids, completion_ids)
        order = torch.arange(len(prompts))
        if training:
            minibatch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            order = by_length(torch.randperm(len(prompts)), lengths_of(batch), minibatch)
        batch = {name: tensor[order.to(tensor.device)] for name, tensor in batch.items()}
        scored = self._score_completions(batch)
        back = order.argsort().to(scores.device)  # rewards and tables are in the order of the prompts

        mask, lengths = batch["completion_mask"], batch["completion_mask"].sum(1)
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * ~torch.tensor(ended, device=scores.device)
        kl = per_token_kl(scored["log_probs"], scored["ref_log_probs"], self.args.kl_estimator) * mask
        raw = token_rewards(scores[order.to(scores.device)], kl, self.kl.coefficient, mask, lengths)
        shaped = whiten(raw, mask, shift_mean=False, reduce=self._sum_over_ranks) if self.args.whiten_rewards else raw
        advantages, returns = gae(shaped, scored["token_values"], mask, self.args.gamma, self.args.lam)
        explained = explained_variance(scored["token_values"], returns, mask, self._sum_over_ranks)
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum_over_ranks)

        per_row = {
            "kl": kl.sum(1)[back],
            "total_reward": raw.sum(1)[back],
            "eos_rate": torch.tensor(ended, device=scores.device).float(),
        }
        per_row = {name: self.accelerator.gather(value) for name, value in per_row.items()}
        entropy, tokens = self._sum_over_ranks(torch.stack([(scored["entropy"] * mask).sum(), mask.sum()])).tolist()
        self._log_rollout(prompts, completions, rewards, per_row, entropy / tokens, explained.item())
        mean_advantages = self.accelerator.gather(((advantages * mask).sum(1) / lengths)[back])
        self._logs["advantages"].extend(mean_advantages.tolist())
        if training:
            self.kl.update(per_row["kl"].mean().item(), len(per_row["kl"]))
        return {
            **batch,
            "old_log_probs": scored["log_probs"],
            "old_values": scored["token_values"],
            "advantages": advantages,
            "returns": returns,
        }

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
            for kind, tensors, filler in (
                ("ids", ids, self._tokenizer.pad_token_id),
                ("mask", [torch.ones_like(row) for row in ids], 0),
            ):
                padded = pad(tensors, padding_value=filler, padding_side=sides[name])
                batch[f"{name}_{kind}"] = padded.to(self.accelerator.device)
        return batch

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
