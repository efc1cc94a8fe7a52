"""The picture of a PPO run: is it learning, and at what price?"""

import logging
from pathlib import Path

from transformers import TrainerCallback


logger = logging.getLogger(__name__)

# title -> (key in the log, its label)
PANELS = {
    "reward": (("reward", "score"), ("total_reward", "score - KL penalty"), ("eval_reward", "held-out score")),
    "KL from the reference (nats per completion)": (("kl", "training"), ("eval_kl", "held-out")),
    "entropy (nats per token)": (("policy/entropy", "training"), ("eval_policy/entropy", "held-out")),
    "value loss": (("value/loss", "value loss"),),
    "tokens per completion": (
        ("completions/mean_length", "training"),
        ("eval_completions/mean_length", "held-out"),
    ),
}


def plot_history(path: Path, history: list[dict], title: str = "") -> None:
    """Write a PNG of reward, KL, entropy, value loss and length over optimizer steps.

    Args:
        history: `TrainerState.log_history`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(PANELS)), dpi=120, layout="constrained")
    figure.suptitle(title)
    for axes, (name, series) in zip(figure.subplots(len(PANELS), sharex=True), PANELS.items()):
        for key, label in series:
            points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
            if points:
                held_out = key.startswith("eval_")
                axes.plot(*zip(*points), "o-" if held_out else "-", linewidth=1.5, markersize=3.5, label=label)
        axes.set_ylabel(name, fontsize="small", wrap=True)
        axes.grid(alpha=0.25)
        axes.spines[["right", "top"]].set_visible(False)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize="small")
    axes.set_xlabel("optimizer step")
    figure.savefig(path, format="png")


class PlotAtEnd(TrainerCallback):
    """Writes `ppo.png` into the output directory when training ends."""

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.log_history:
            try:
                plot_history(Path(args.output_dir) / "ppo.png", state.log_history, Path(args.output_dir).name)
            except ImportError as error:  # the run is done, and no picture is worth it
                logger.warning("ppo.png was not drawn: %s", error)
