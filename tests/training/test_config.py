"""Configurations: every key is checked, the nearest legal one is named."""

import pytest

from hf_llm.training.pretraining import Pretraining
from hf_llm.training.settings import load_yaml, parse_overrides


def minimal():
    return {
        "output_dir": "out",
        "model": {
            "model_type": "hf_llm_encoder_decoder",
            "encoder": {"hidden_size": 8, "num_attention_heads": 2},
            "decoder": {"hidden_size": 8, "num_attention_heads": 2},
        },
        "training": {"max_steps": 3},
        "objective": {"name": "span_corruption"},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.max_steps", "unknown key 'trainig'; did you mean 'training'?"),
        ("training.max_step", "unknown key 'training.max_step'; did you mean 'max_steps'?"),
        ("training.zzz", "unknown key 'training.zzz'; legal: "),
        ("data.row_lenght", "unknown key 'data.row_lenght'; did you mean 'row_length'?"),
        ("model.share_embedings", "unknown key 'model.share_embedings'; did you mean 'share_embeddings'?"),
        ("model.encoder.hiden_size", "unknown key 'model.encoder.hiden_size'; did you mean 'hidden_size'?"),
        ("model.decoder.norm_tipe", "unknown key 'model.decoder.norm_tipe'; did you mean 'norm_type'?"),
        ("model.model_type", "model.model_type = 1 is unknown"),
        ("training.optim", "training.optim is not set here: use training.optimizer"),
        ("training.seed", "training.seed is not set here: use the top-level seed"),
        ("data.row_length", "data.row_length = 'x' is not of type int"),
        ("training.learning_rate", "training.learning_rate = 'x' is not of type float"),
        ("seed.x", "--seed.x: seed is a value, not a section"),
        ("output_dir", "output_dir = 7 is not of type str"),
    ],
)
def test_a_wrong_key_or_type_is_one_clear_error(override, message, write_config):
    value = {"model.model_type": "1", "output_dir": "7"}.get(override, "x")
    with pytest.raises(ValueError) as error:
        Pretraining.load(write_config({**minimal(), "seed": 0}), [f"--{override}", value])
    assert message in str(error.value)


def test_overrides_win_and_are_yaml(write_config):
    words = ["--training.learning_rate", "1e-3", "--data.corpus=[a, b]", "--seed", "3"]
    config = Pretraining.load(write_config(minimal()), words)
    assert config.training == {"max_steps": 3, "learning_rate": 0.001}
    assert (config.data.corpus, config.seed) == (["a", "b"], 3)


@pytest.mark.parametrize("words", [["x"], ["--a"], ["--"], ["--a", "[1"]])
def test_malformed_overrides_are_refused(words):
    with pytest.raises(ValueError):
        parse_overrides(words)


@pytest.mark.parametrize("section", ["output_dir", "model", "training", "objective"])
def test_missing_sections_are_named(section):
    settings = minimal()
    del settings[section]
    with pytest.raises(ValueError, match=f"missing in the configuration: {section}"):
        Pretraining.from_dict(settings)


def test_an_unreadable_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml: No such file"):
        Pretraining.load(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="expected a mapping of sections, got list"):
        Pretraining.load(tmp_path / "list.yaml")


def test_only_true_and_false_are_booleans():
    assert load_yaml("[true, False, no, yes, on, OFF]") == [True, False, "no", "yes", "on", "OFF"]


def test_numbers_are_read_as_yaml_1_2_reads_them():
    assert load_yaml("[1e-3, 5E4, 1.5, .5, 3, -2e2, 1e3x, 2024-01]") == [
        0.001,
        5e4,
        1.5,
        0.5,
        3,
        -200.0,
        "1e3x",
        "2024-01",
    ]
