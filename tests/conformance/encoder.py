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


class BertTester(ModelTester):
    config_class = BertConfig
    base_model_class = BertModel
    config = {
        "vocab_size": ModelTester.vocab_size,
        "hidden_size": ModelTester.hidden_size,
        "intermediate_size": ModelTester.intermediate_size,
        "num_hidden_layers": ModelTester.num_hidden_layers,
        "num_attention_heads": ModelTester.num_attention_heads,
        "max_position_embeddings": ModelTester.max_position_embeddings,
        "pad_token_id": ModelTester.pad_token_id,
    }


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
