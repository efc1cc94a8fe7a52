"""How good a model is: perplexity, task metrics, bias, what goes on inside, and how it scales."""

from .metrics import METRICS, load_metric


__all__ = ["METRICS", "load_metric"]
