"""How good a model is: perplexity, task metrics, and bias."""

from hf_llm.metrics import METRICS, load_metric


__all__ = ["METRICS", "load_metric"]
