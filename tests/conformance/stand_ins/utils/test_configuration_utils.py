"""Stands in for a module that transformers' source distribution leaves out."""

# Common configuration fields with values other than their defaults: `ConfigTester` asserts that a config keeps them.
config_common_kwargs = {
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "is_encoder_decoder": True,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
    "name_or_path": "",
}
