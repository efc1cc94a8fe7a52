"""The decoder stack with a mixture of experts under transformers' common tests, beside Qwen3-MoE."""

import unittest

from decoder import DecoderTester, LLMDecoderTester
from testers import CommonTests
from transformers import (
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3MoeForQuestionAnswering,
    Qwen3MoeForSequenceClassification,
    Qwen3MoeForTokenClassification,
    Qwen3MoeModel,
)
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin

from hf_llm import (
    LLMDecoderForCausalLM,
    LLMDecoderForQuestionAnswering,
    LLMDecoderForSequenceClassification,
    LLMDecoderForTokenClassification,
    LLMDecoderModel,
)


EXPERTS = {
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "moe_intermediate_size": 16,  # grouped matrix products want rows of a multiple of 16 bytes
}


class Qwen3MoeTester(DecoderTester):
    config_class = Qwen3MoeConfig
    config = DecoderTester.config | EXPERTS | {"num_local_experts": 8}
    has_experts = True
    base_model_class = Qwen3MoeModel
    causal_lm_class = Qwen3MoeForCausalLM


class LLMDecoderExpertsTester(LLMDecoderTester):
    config = LLMDecoderTester.config | EXPERTS | {"num_experts": 8}
    has_experts = True


class ExpertsTests(CommonTests, GenerationTesterMixin, TensorParallelTesterMixin):
    model_tester = None  # abstract in the mixin, set by `setUp`
    # a batch need not reach every expert
    test_all_params_have_gradient = False

    # Qwen3-MoE's published checkpoints hold their experts apart and are converted; hf_llm's have one format
    test_reverse_loading_mapping = None
    test_can_load_from_already_mapped_keys = None
    # switches `use_sliding_window`, a field of Qwen's; here `layer_types` says which layers slide
    test_sliding_window_mask = None

    def _skip_if_tp_distributed_not_enabled(self):
        """transformers runs these for a few model types only, to save time; here they always run."""


class Qwen3MoeControl(ExpertsTests, unittest.TestCase):
    model_tester_class = Qwen3MoeTester
    all_model_classes = (
        Qwen3MoeModel,
        Qwen3MoeForCausalLM,
        Qwen3MoeForSequenceClassification,
        Qwen3MoeForTokenClassification,
        Qwen3MoeForQuestionAnswering,
    )


class LLMDecoderExpertsTest(ExpertsTests, unittest.TestCase):
    model_tester_class = LLMDecoderExpertsTester
    all_model_classes = (
        LLMDecoderModel,
        LLMDecoderForCausalLM,
        LLMDecoderForSequenceClassification,
        LLMDecoderForTokenClassification,
        LLMDecoderForQuestionAnswering,
    )

    def test_training_gradient_checkpointing_use_reentrant_true(self):
        # refused beside router losses, whose gradients it would lose; Qwen3-MoE adds them on request only
        self.model_tester.config = self.model_tester.config | {"router_aux_loss_coef": 0.0}
        super().test_training_gradient_checkpointing_use_reentrant_true()
