"""Everything private that hf_llm takes from TRL, in one place: what moves in TRL is mended here.

tests/rlhf/test_trl_internals.py watches names, signatures and behaviour.
"""

# ruff: noqa: F401
import importlib.metadata


SUPPORTED = ">=1.16,<1.17"

try:
    from trl import RLOOConfig, RLOOTrainer
    from trl.data_utils import _tokenize as tokenize_like_reward_trainer
    from trl.models import unwrap_model_for_generation
    from trl.models.utils import disable_gradient_checkpointing
    from trl.trainer.base_config import _BaseConfig as BaseConfig
    from trl.trainer.utils import (
        RepeatSampler,
        disable_dropout_in_model,
        get_callable_name,
        is_async_callable,
        pad,
        selective_log_softmax,
        selective_log_softmax_and_entropy,
        use_adapter,
    )
except ImportError as error:
    try:
        found = f"TRL {importlib.metadata.version('trl')} is installed"
    except importlib.metadata.PackageNotFoundError:
        found = "it is not installed"
    raise ImportError(
        f"hf_llm.rlhf is built on TRL {SUPPORTED}, and {found} ({error}): pip install 'hf_llm[rlhf]'"
    ) from error
