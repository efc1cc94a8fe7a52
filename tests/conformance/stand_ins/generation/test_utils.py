"""Stands in for a module that transformers' source distribution leaves out: `generate`, by every route."""

import copy

import torch
from transformers import set_seed


NEW_TOKENS = 5


class GenerationTesterMixin:
    """Every mode of `generate` works, and the routes that promise the same tokens give them, with the same logits."""

    def generative_models(self):
        """Yields (model, inputs) for each class that generates; the model never stops before `NEW_TOKENS`."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        for model_class in self.all_generative_model_classes:
            model = model_class(copy.deepcopy(config)).eval()
            model.generation_config.eos_token_id = None
            model.generation_config.forced_eos_token_id = None
            yield model, inputs

    def generate(self, model, inputs, **kwargs):
        """Greedy unless told otherwise; checks the number of sequences and of new tokens."""
        set_seed(0)
        arguments = {
            "do_sample": False,
            "num_beams": 1,
            "max_new_tokens": NEW_TOKENS,
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        output = model.generate(**inputs, **(arguments | kwargs))
        batch_size, prompt_length = next(iter(inputs.values())).shape[:2]
        self.assertEqual(output.sequences.shape[0], batch_size * kwargs.get("num_return_sequences", 1))
        # a decoder returns the prompt too (unless it was given as embeddings), an encoder-decoder its start token
        prompt_length = 1 if model.config.is_encoder_decoder else prompt_length * ("input_ids" in inputs)
        self.assertEqual(output.sequences.shape[1], prompt_length + kwargs.get("max_new_tokens", NEW_TOKENS))
        return output

    def assert_same_generation(self, actual, expected):
        self.assertEqual(actual.sequences[:, -NEW_TOKENS:].tolist(), expected.sequences[:, -NEW_TOKENS:].tolist())
        torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-5)

    def test_generate_modes(self):
        modes = {
            "sample": {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
            "nucleus": {"do_sample": True, "top_p": 0.9, "temperature": 0.7},
            "min-p": {"do_sample": True, "min_p": 0.05},
            "beam": {"num_beams": 3, "num_return_sequences": 2},
            "beam sample": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
        }
        for model, inputs in self.generative_models():
            for name, mode in modes.items():
                with self.subTest(name):
                    sequences = self.generate(model, inputs, **mode).sequences
                    self.assertTrue(torch.equal(sequences, self.generate(model, inputs, **mode).sequences))

    def test_generate_without_cache(self):
        for model, inputs in self.generative_models():
            expected = self.generate(model, inputs)
            self.assertIsNotNone(expected.past_key_values)
            self.assert_same_generation(self.generate(model, inputs, use_cache=False), expected)

    def test_generate_with_static_cache(self):
        for model, inputs in self.generative_models():
            output = self.generate(model, inputs, cache_implementation="static", disable_compile=True)
            self.assert_same_generation(output, self.generate(model, inputs))

    def test_generate_beams_without_cache(self):
        for model, inputs in self.generative_models():
            cached = self.generate(model, inputs, num_beams=3).sequences
            self.assertTrue(torch.equal(self.generate(model, inputs, num_beams=3, use_cache=False).sequences, cached))

    def test_generate_padded(self):
        for model, inputs in self.generative_models():
            side = "right" if model.config.is_encoder_decoder else "left"
            padding = {"left": (3, 0), "right": (0, 3)}[side]
            padded = {
                "input_ids": torch.nn.functional.pad(
                    inputs["input_ids"], padding, value=self.model_tester.pad_token_id
                ),
                "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], padding),
            }
            self.assert_same_generation(self.generate(model, padded), self.generate(model, inputs))

    def test_generate_assisted(self):
        for model, inputs in self.generative_models():
            one = {name: tensor[:1] for name, tensor in inputs.items()}
            expected = self.generate(model, one)
            for name, kwargs in {
                "by a model": {"assistant_model": copy.deepcopy(model)},
                "by prompt lookup": {"prompt_lookup_num_tokens": 2},
            }.items():
                with self.subTest(name):
                    self.assert_same_generation(self.generate(model, one, **kwargs), expected)

    def test_generate_from_inputs_embeds(self):
        for model, inputs in self.generative_models():
            embeds = {
                "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach(),
                "attention_mask": inputs["attention_mask"],
            }
            self.assert_same_generation(self.generate(model, embeds), self.generate(model, inputs))

    def test_generate_continues_from_a_cache(self):
        for model, inputs in self.generative_models():
            if model.config.is_encoder_decoder:
                self.skipTest("the encoder's input is not continued")
            expected = self.generate(model, inputs)
            first = self.generate(model, inputs, max_new_tokens=2)
            rest = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
            second = self.generate(model, rest, max_new_tokens=3, past_key_values=first.past_key_values)
            self.assertTrue(torch.equal(second.sequences, expected.sequences))

    def test_generate_returns_what_is_asked(self):
        for model, inputs in self.generative_models():
            model.set_attn_implementation("eager")
            output = self.generate(
                model, inputs, output_attentions=True, output_hidden_states=True, output_scores=True
            )
            prefix = "decoder_" if model.config.is_encoder_decoder else ""
            for name in ("scores", "logits", f"{prefix}attentions", f"{prefix}hidden_states"):
                self.assertEqual(len(output[name]), NEW_TOKENS, name)
            self.assertEqual(len(output[f"{prefix}attentions"][0]), self.model_tester.num_hidden_layers)
            self.assertEqual(len(output[f"{prefix}hidden_states"][0]), self.model_tester.num_hidden_layers + 1)
