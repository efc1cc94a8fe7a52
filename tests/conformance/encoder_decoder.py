"""The encoder-decoder stack under transformers' common tests, beside BART."""

import unittest

from testers import CommonTests, EncoderDecoderTester, ModelTester
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
)
from transformers_tests.generation.test_utils import GenerationTesterMixin

from hf_llm import (
    LLMEncoderDecoderConfig,
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderDecoderForQuestionAnswering,
    LLMEncoderDecoderForSequenceClassification,
    LLMEncoderDecoderModel,
)


TOKEN_IDS = {
    "pad_token_id": ModelTester.pad_token_id,
    "bos_token_id": ModelTester.bos_token_id,
    "eos_token_id": ModelTester.eos_token_id,
    "decoder_start_token_id": ModelTester.bos_token_id,
}


class BartTester(EncoderDecoderTester):
    config_class = BartConfig
    base_model_class = BartModel
    config = {
        "vocab_size": ModelTester.vocab_size,
        "d_model": ModelTester.hidden_size,
        "encoder_layers": ModelTester.num_hidden_layers,
        "decoder_layers": ModelTester.num_hidden_layers,
        "encoder_attention_heads": ModelTester.num_attention_heads,
        "decoder_attention_heads": ModelTester.num_attention_heads,
        "encoder_ffn_dim": ModelTester.intermediate_size,
        "decoder_ffn_dim": ModelTester.intermediate_size,
        "max_position_embeddings": ModelTester.max_position_embeddings,
        "forced_eos_token_id": None,
        **TOKEN_IDS,
    }


class LLMEncoderDecoderTester(EncoderDecoderTester):
    config_class = LLMEncoderDecoderConfig
    base_model_class = LLMEncoderDecoderModel
    config = TOKEN_IDS

    def get_config(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        stack = {name: getattr(self, name) for name in (*sizes, "max_position_embeddings")}
        return self.config_class(encoder=stack, decoder=stack | {"num_key_value_heads": 2}, **self.config)


class EncoderDecoderTests(CommonTests, GenerationTesterMixin):
    is_encoder_decoder = True


class BartControl(EncoderDecoderTests, unittest.TestCase):
    model_tester_class = BartTester
    all_model_classes = (
        BartModel,
        BartForConditionalGeneration,
        BartForSequenceClassification,
        BartForQuestionAnswering,
    )

    def test_inputs_embeds(self):
        # its classifier looks for the end of a text among `input_ids`
        self.all_model_classes = tuple(c for c in self.all_model_classes if c is not BartForSequenceClassification)
        super().test_inputs_embeds()


class LLMEncoderDecoderTest(EncoderDecoderTests, unittest.TestCase):
    model_tester_class = LLMEncoderDecoderTester
    all_model_classes = (
        LLMEncoderDecoderModel,
        LLMEncoderDecoderForConditionalGeneration,
        LLMEncoderDecoderForSequenceClassification,
        LLMEncoderDecoderForQuestionAnswering,
    )
