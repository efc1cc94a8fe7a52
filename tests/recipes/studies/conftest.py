"""What studies share with the rest of evaluation: small language models and their tokenizers."""

from evaluation.conftest import language_models, tokenizers  # noqa: F401 (fixtures)
