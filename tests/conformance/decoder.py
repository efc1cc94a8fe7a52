"""The decoder stack under transformers' common tests, beside Llama."""

import unittest

from testers import CommonTests, ModelTester
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_fsdp_mixin import FSDPTesterMixin
from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMDecoderForQuestionAnswering,
    LLMDecoderForSequenceClassification,
    LLMDecoderForTokenClassification,
    LLMDecoderModel,
)


class DecoderTester(ModelTester):
    config = {
        name: getattr(ModelTester, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
        )
    }


class LlamaTester(DecoderTester):
    config_class = LlamaConfig
    base_model_class = LlamaModel
    causal_lm_class = LlamaForCausalLM


class LLMDecoderTester(DecoderTester):
    # one sliding layer and one full: both kinds of masks and caches
    config = DecoderTester.config | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    config_class = LLMDecoderConfig
    base_model_class = LLMDecoderModel
    causal_lm_class = LLMDecoderForCausalLM


class DecoderTests(
    CommonTests, GenerationTesterMixin, TrainingTesterMixin, TensorParallelTesterMixin, FSDPTesterMixin
):
    """Training, tensor-parallel and FSDP tests come on top; the last two start processes."""

    model_tester = None  # abstract in the mixins, set by `setUp`

    def _skip_if_tp_distributed_not_enabled(self):
        """transformers runs these for a few model types only, to save time; here they always run."""

    def _skip_if_fsdp_distributed_not_enabled(self):
        """As above."""

    def _get_tiny_config(self):
        """As in the mixin, which sets the width of experts whether there are any or not; hf_llm refuses that."""
        config_class, fields = super()._get_tiny_config()
        if not self.model_tester.has_experts:
            fields.pop("moe_intermediate_size", None)
        return config_class, fields


class LlamaControl(DecoderTests, unittest.TestCase):
    model_tester_class = LlamaTester
    all_model_classes = (
        LlamaModel,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
        LlamaForQuestionAnswering,
    )


class LLMDecoderTest(DecoderTests, unittest.TestCase):
    model_tester_class = LLMDecoderTester
    all_model_classes = (
        LLMDecoderModel,
        LLMDecoderForCausalLM,
        LLMDecoderForSequenceClassification,
        LLMDecoderForTokenClassification,
        LLMDecoderForQuestionAnswering,
    )
