"""Proximal policy optimization (arXiv 1707.06347) of language models from rewards (arXiv 1909.08593, 2203.02155)."""

import copy
import inspect
from collections.abc import Iterable

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..training.evaluation import preserved_rng
from . import critic as critics
from .advantages import KLController, RunningMoments
from .checks import check_launch, check_prompts, check_tokenizer, check_writes
from .config import PPOConfig
from .logs import LogsRollouts
from .losses import policy_loss, value_loss
from .policy import NoDropout, score_completions_in_forward, start_token_of
from .rewards import Reward, RewardModel, Tokenizers, resolve_rewards
from .rollout import Rollout, ShufflesByEpoch
from .sampling import SamplesRollouts
from .saving import SavesPPO
from .trl_internals import RLOOTrainer


class PPOTrainer(ShufflesByEpoch, SavesPPO, SamplesRollouts, LogsRollouts, RLOOTrainer):
    """Trains a language model by PPO on TRL's rollouts, rewards and logs.

    Args:
        model: policy: a causal or sequence-to-sequence language model of transformers, a PEFT model of one, or a path.
        reward_funcs: one or several of: a sequence-classification model with one label, or its path; a function,
            sync or async, called with `prompts`, `completions`, `completion_ids`, all further columns of the dataset
            and `trainer_state` as keywords, that returns one number per completion. Weighted by `args.reward_weights`.
        args: a [`PPOConfig`].
        train_dataset: TRL's prompt-only format: a column `prompt` of texts or of conversations.
        eval_dataset: the same, for `evaluate()`.
        processing_class: the policy's tokenizer; None: the one saved with it.
        reward_processing_classes: tokenizers of the reward models (None for functions, or for models saved with
            theirs). They need not be the policy's.
        value_model: a model, or its path, whose backbone becomes the critic's without a copy. None: by `args.critic`.
        ref_model: reference of the KL. None: a copy of the policy; with new adapters, the policy without them; with
            adapters that `model` came with, a frozen copy of these.
        peft_config: adapters for the policy.
        value_peft_config: adapters for the critic's backbone. None: those of the policy, if it has any and the critic
            begins as its copy, whose frozen weights both then share.
        callbacks, optimizers, quantization_config: as in TRL.

    Attributes:
        critic: the value model, a submodule of the policy.
        kl: holds the KL coefficient.

    Raises:
        ValueError: before the first rollout, for tokenizers, prompts, reward models or sizes that do not fit; in a
            rollout, for rewards that are not finite numbers.
        TrainingDiverged: a loss or gradient is not finite; names the last good checkpoint.
    """

    loss_is_scaled_for_ga = True  # token sums over the tokens of a whole minibatch
    _tag_names = ["hf_llm", "trl", "ppo"]
    _name = "PPO"
    _paper = {"title": "Fine-Tuning Language Models from Human Preferences", "id": "1909.08593"}

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Reward | list[Reward],
        args: PPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Tokenizers = None,
        value_model: str | PreTrainedModel | None = None,
        ref_model: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config=None,
        peft_config=None,
        value_peft_config=None,
    ):
        args = PPOConfig("ppo") if args is None else args
        if processing_class is None:
            path = model if isinstance(model, str) else model.config._name_or_path
            processing_class = AutoTokenizer.from_pretrained(path, trust_remote_code=args.trust_remote_code)
        check_tokenizer(processing_class)
        if not isinstance(model, str):
            check_writes(model, processing_class)
        processing_class.padding_side = "left"
        rewards = resolve_rewards(reward_funcs, reward_processing_classes, args)
        super().__init__(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        check_launch(self.model, args, self.accelerator)
        base = critics.base_of(self.model)
        self.start_token_id = start_token_of(base)
        if not args.use_vllm:
            self.generation_config.decoder_start_token_id = self.start_token_id
        self._takes_positions = "position_ids" in inspect.signature(type(base).forward).parameters
        self.reward_models = [reward for reward in rewards if isinstance(reward, RewardModel)]
        check_prompts(self, "train_dataset", self.train_dataset, args.generation_batch_size // args.num_generations)
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        for key, dataset in evaluated.items():
            if dataset is not None:
                check_prompts(self, "eval_dataset" if key is None else f"eval_dataset[{key!r}]", dataset, 1)

        if args.kl_coef > 0:
            self.ref_model = self._prepare_reference(ref_model)
        reward_model = self._reward_model_for_critic()
        self.critic = critics.build_critic(
            self.model, args.critic, args.value_head_init, value_model, value_peft_config, reward_model
        )
        base.add_module(critics.NAME, self.critic)
        score_completions_in_forward(base)
        self.dropout = NoDropout(self.model if args.disable_dropout else nn.Identity())

        self.kl = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self.score_moments = RunningMoments()
        self._steps_per_rollout = args.steps_per_generation * args.num_iterations  # in micro-batches
        self._rollout: Rollout | None = None
        self._minibatch_kl = 0.0
        self._stopped_early = False

    # ---- setting up ------------------------------------------------------------------------------------------------

    def _prepare_reference(self, ref_model: PreTrainedModel | None) -> nn.Module | None:
        if ref_model is None:
            if is_peft_model(self.model):
                return None  # the disabled adapter
            ref_model = copy.deepcopy(self.model)
            vars(ref_model).pop("forward", None)  # TRL's belongs to the policy
        ref_model.requires_grad_(False)
        NoDropout(ref_model)
        score_completions_in_forward(ref_model)
        return self.accelerator.prepare_model(ref_model, evaluation_mode=True)

    def _reward_model_for_critic(self) -> PreTrainedModel | None:
        """The only reward model, if it has the policy's architecture and vocabulary."""
        base = critics.base_of(self.model)
        if len(self.reward_models) != 1 or base.config.is_encoder_decoder:
            return None
        reward = self.reward_models[0]
        same = (
            type(critics.backbone_of(reward.model)) is type(critics.backbone_of(base))
            and reward.tokenizer.get_vocab() == self.processing_class.get_vocab()
            and critics.num_embeddings(reward.model) >= critics.num_embeddings(base)
        )
        return reward.model if same else None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As in Trainer; the critic's weights are in groups of their own, with `args.critic_learning_rate`."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rate = self.args.critic_learning_rate
        if created and rate is not None:
            for group in list(optimizer.param_groups):
                moved, group["params"] = self._of_critic(group["params"])
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer

    def _of_critic(self, parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The critic's among parameters, and the others."""
        own, parameters = {id(p) for p in self.critic.parameters()}, list(parameters)
        return [p for p in parameters if id(p) in own], [p for p in parameters if id(p) not in own]

    # ---- losses ----------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        args, mask = self.args, inputs["completion_mask"]
        warming_up = self.state.global_step < args.critic_warmup_steps
        self.critic.detached = warming_up
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = self._forward(model, inputs, **router)
        old, advantages, clip = inputs["old_log_probs"], inputs["advantages"], (self.epsilon_low, self.epsilon_high)
        policy = policy_loss(output.log_probs, old, advantages, mask, *clip)
        values, old_values = output.token_values, inputs["old_values"]
        value, value_clipped = value_loss(values, old_values, inputs["returns"], mask, args.cliprange_value)
        total = (0.0 if warming_up else 1.0) * policy.total + args.vf_coef * value
        # DDP takes the mean over processes
        loss = total * self.accelerator.num_processes / inputs["minibatch_tokens"]
        if output.aux_loss is not None and not warming_up:
            loss = loss + self.router_aux_loss_coef * output.aux_loss / args.gradient_accumulation_steps

        sums = {
            "policy/loss": policy.total.detach(),
            "policy/ratio_mean": (policy.ratio * mask).sum(),
            "policy/approx_kl": policy.approx_kl.sum(),
            "policy/clip_fraction": policy.clipped.sum(),
            "value/loss": value.detach(),
            "value/clip_fraction": value_clipped.sum(),
            "value/mean": (values.detach() * mask).sum(),
        }
        totals = self._sum_over_ranks(torch.stack([*sums.values(), mask.sum().float(), loss.detach()])).tolist()
        *totals, tokens, checked = totals
        self._check_finite(checked, None)
        totals = dict(zip(sums, totals))
        metrics = self._metrics["train"]
        for name, total in totals.items():
            metrics[name].append(total / tokens)
        metrics["policy/ratio_max"].append(self.accelerator.gather(policy.ratio.max()).max().item())
        self._minibatch_kl += totals["policy/approx_kl"] / inputs["minibatch_tokens"]
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in Trainer; nothing for the rest of a rollout that `early_stop_kl` has ended."""
        accumulation = self.args.gradient_accumulation_steps
        if self._stopped_early and self._step % self._steps_per_rollout:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._step % accumulation == 0:  # that was a minibatch's last micro-batch
            if self.state.global_step < self.args.critic_warmup_steps:
                for parameter in self._of_critic(self.model.parameters())[1]:
                    parameter.grad = None  # with gradients of 0, weight decay would move the policy
            limit = self.args.early_stop_kl
            if limit is not None:
                self._stopped_early = self._minibatch_kl > limit
                self._metrics["train"]["policy/stopped_early"].append(float(self._stopped_early))
                if self._stopped_early:
                    model.zero_grad()
            self._minibatch_kl = 0.0
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if not self.args.fp16:  # whose loss scaling meets infinite gradients, and skips the step
            self._check_finite(0.0, norm)
        return norm

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args, **kwargs):
        with preserved_rng():  # each evaluation samples with the same seed, and leaves the run's generators alone
            torch.manual_seed(self.args.seed + self.accelerator.process_index)
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logs rewards, KL and lengths. There is no loss: PPO's is defined on completions that are trained on."""
        self._prepare_inputs(inputs)
        return None, None, None
