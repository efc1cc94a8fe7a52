"""The encoder stack under transformers' common tests, beside BERT."""

import unittest

from testers import CommonTests, ModelTester
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hf_llm import (
    LLMEncoderConfig,
    LLMEncoderForMaskedLM,
    LLMEncoderForMultipleChoice,
    LLMEncoderForQuestionAnswering,
    LLMEncoderForSequenceClassification,
    LLMEncoderForTokenClassification,
    LLMEncoderModel,
)


class EncoderTester(ModelTester):
    config = {
        name: getattr(ModelTester, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "pad_token_id",
        )
    }


class BertTester(EncoderTester):
    config_class = BertConfig
    base_model_class = BertModel


class LLMEncoderTester(EncoderTester):
    # one sliding layer and one full: both kinds of masks
    config = EncoderTester.config | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    config_class = LLMEncoderConfig
    base_model_class = LLMEncoderModel


class BertControl(CommonTests, unittest.TestCase):
    model_tester_class = BertTester
    all_model_classes = (
        BertModel,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertForMultipleChoice,
    )


class LLMEncoderTest(CommonTests, unittest.TestCase):
    model_tester_class = LLMEncoderTester
    all_model_classes = (
        LLMEncoderModel,
        LLMEncoderForMaskedLM,
        LLMEncoderForSequenceClassification,
        LLMEncoderForTokenClassification,
        LLMEncoderForQuestionAnswering,
        LLMEncoderForMultipleChoice,
    )
