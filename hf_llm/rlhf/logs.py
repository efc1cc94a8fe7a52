"""The part of [`PPOTrainer`] that logs figures and tables of completions."""

from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import gather_object


class LogsRollouts:
    """Mixin for TRL's RLOOTrainer, whose `log` averages the figures of all steps since the last log."""

    def _log_rollout(self, prompts, completions, rewards, per_row, entropy: float, explained: float) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for i, name in enumerate(self.reward_func_names):
            given = rewards[:, i][~torch.isnan(rewards[:, i])]
            metrics[f"rewards/{name}/mean"].append(given.mean().item())
            metrics[f"rewards/{name}/std"].append(given.std(correction=0).item())
            self._logs["rewards"][name].extend(rewards[:, i].tolist())
        weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        metrics["reward"].append(weighted.mean().item())
        metrics["reward_std"].append(weighted.std(correction=0).item())
        for name, values in per_row.items():
            metrics[name].append(values.mean().item())
        metrics["policy/entropy"].append(entropy)
        metrics["value/explained_variance"].append(explained)
        if self.model.training:
            metrics["kl_coef"].append(self.kl.coefficient)
            episodes = (self._step // self._steps_per_rollout + 1) * self.args.generation_batch_size
            metrics["episodes"].append(episodes)
        self._logs["prompt"].extend(gather_object(prompts))
        self._logs["completion"].extend(gather_object(completions))
        for name in ("kl", "total_reward"):
            self._logs["extra"][name].extend(per_row[name].tolist())
        self._log_pending(metrics, len(prompts))

    def _log_pending(self, metrics, count: int) -> None:
        """Log what reward functions passed to `log_extra` and `log_metric`; sorted, so that all ranks gather alike."""
        for column in sorted(set(gather_object(list(self._pending_extra_logs)))):
            values = self._pending_extra_logs.get(column, [None] * count)
            self._logs["extra"][column].extend(gather_object(values))
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = gather_object(self._pending_metrics.get(name, []))
            metrics[name].append(sum(values) / len(values))
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.log_completions and self.accelerator.is_main_process and self._logs["prompt"]:
            folder = Path(self.args.output_dir) / "completions"
            folder.mkdir(parents=True, exist_ok=True)
            table = {name: self._logs[name] for name in ("prompt", "completion")}
            table |= {**self._logs["rewards"], **self._logs["extra"], "advantage": self._logs["advantages"]}
            path = folder / f"step-{self.state.global_step:06d}.jsonl"
            pd.DataFrame(table).to_json(path, orient="records", lines=True, force_ascii=False)
