"""The encoder-decoder stack under transformers' common tests, beside BART."""

import unittest

from testers import CommonTests, EncoderDecoderTester
from transformers import BartConfig, BartForConditionalGeneration, BartModel
from transformers_tests.generation.test_utils import GenerationTesterMixin


class BartTester(EncoderDecoderTester):
    config_class = BartConfig
    base_model_class = BartModel
    config = {
        "vocab_size": EncoderDecoderTester.vocab_size,
        "d_model": EncoderDecoderTester.hidden_size,
        "encoder_layers": EncoderDecoderTester.num_hidden_layers,
        "decoder_layers": EncoderDecoderTester.num_hidden_layers,
        "encoder_attention_heads": EncoderDecoderTester.num_attention_heads,
        "decoder_attention_heads": EncoderDecoderTester.num_attention_heads,
        "encoder_ffn_dim": EncoderDecoderTester.intermediate_size,
        "decoder_ffn_dim": EncoderDecoderTester.intermediate_size,
        "max_position_embeddings": EncoderDecoderTester.max_position_embeddings,
        "pad_token_id": EncoderDecoderTester.pad_token_id,
        "bos_token_id": EncoderDecoderTester.bos_token_id,
        "eos_token_id": EncoderDecoderTester.eos_token_id,
        "decoder_start_token_id": EncoderDecoderTester.bos_token_id,
        "forced_eos_token_id": None,
    }


class EncoderDecoderTests(CommonTests, GenerationTesterMixin):
    is_encoder_decoder = True


class BartControl(EncoderDecoderTests, unittest.TestCase):
    model_tester_class = BartTester
    all_model_classes = (BartModel, BartForConditionalGeneration)
