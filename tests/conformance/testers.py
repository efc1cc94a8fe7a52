"""What transformers' test mixins ask of a model: a tiny configuration, inputs for it, and the classes to test.

A stack and its native control differ in the class attributes only, so both are asked exactly the same.
"""

import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor


# tests that a class without experts skips; in hf_llm it is the configuration that has them or not
EXPERTS_ONLY = ("test_eager_matches_batched_and_grouped_inference", "test_output_router_logits_from_config")


class ModelTester:
    """Attributes that the mixins read; `config` holds the constructor arguments of `config_class`."""

    config_class: type
    config: dict
    base_model_class: type
    causal_lm_class: type | None = None
    has_experts = False

    batch_size = 13
    seq_length = 7
    is_training = True
    num_choices = 4
    vocab_size = 99
    hidden_size = 32
    intermediate_size = 37
    num_hidden_layers = 2
    num_attention_heads = 4
    num_key_value_heads = 2
    max_position_embeddings = 128
    pad_token_id = 0
    bos_token_id = 1
    eos_token_id = 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return self.config_class(**self.config)

    def token_ids(self) -> torch.Tensor:
        """(batch_size, seq_length) int64; the only special token is the one that ends each row."""
        token_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(min=3)
        token_ids[:, -1] = self.eos_token_id
        return token_ids

    def prepare_config_and_inputs_for_common(self):
        input_ids = self.token_ids()
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class EncoderDecoderTester(ModelTester):
    def __init__(self, parent):
        super().__init__(parent)
        self.encoder_seq_length = self.decoder_seq_length = self.key_length = self.decoder_key_length = self.seq_length

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        decoder_input_ids = self.token_ids()
        inputs |= {
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": torch.ones_like(decoder_input_ids),
        }
        return config, inputs


class CommonTests(ModelTesterMixin):
    """Every test of `ModelTesterMixin`, and the common tests of the configuration."""

    model_tester_class: type[ModelTester]
    # ask for the initialisation of every weight, which transformers waives for models older than 2023
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        if not self.model_tester.has_experts and any(name in self._testMethodName for name in EXPERTS_ONLY):
            self.skipTest("the class supports experts, but this configuration has none")

    def test_config(self):
        tester = self.model_tester
        ConfigTester(self, config_class=tester.config_class, **tester.config).run_common_tests()
