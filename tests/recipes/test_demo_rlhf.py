"""`make demo-rlhf`: its configurations, and all of its stages in few steps."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from hf_llm.rlhf.aligning import ALIGNMENTS
from hf_llm.rlhf.reward_modeling import RewardModeling
from hf_llm.training.pretraining import Pretraining
from hf_llm.tuning.sft import Sft
from studies.comparison import Comparison


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
SHORT = {
    "max_steps": 2,
    "warmup_steps": 1,
    "save_steps": 2,
    "eval_steps": 2,
    "per_device_train_batch_size": 4,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}
ROLLOUTS = {"num_iterations": 1, "max_completion_length": 6}
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96}
FEW = {"max_train_samples": 64, "max_validation_samples": 16, "max_test_samples": 32}
# configuration -> its recipe, its job, what is changed to be done in seconds
STAGES = {
    "pretrain": ("pretrain", Pretraining, {"model": SMALL, "training": SHORT, "data": {"validation_rows": 16}}),
    "sft": ("sft", Sft, {"training": {**SHORT, "eval_strategy": "no"}, "data": FEW, "samples": {"max_new_tokens": 6}}),
    "reward": ("reward_model", RewardModeling, {"training": SHORT, "data": FEW}),
    "ppo": (
        "ppo",
        ALIGNMENTS["ppo"],
        {"training": {**SHORT, **ROLLOUTS}, "data": FEW, "completions": {"max_new_tokens": 6}},
    ),
    "report": ("rlhf_report", Comparison, {"prompts": {"max_test_samples": 24}, "max_new_tokens": 6}),
}


@pytest.mark.parametrize("name", STAGES)
def test_configurations(name):
    _, job, _ = STAGES[name]
    assert job.load(CONFIGS / "demo-rlhf" / f"{name}.yaml").output_dir.startswith("outputs/demo-rlhf/")


def test_the_other_report():
    assert Comparison.load(CONFIGS / "rlhf-report-sentiment.yaml").after.adapter == "outputs/ppo-sentiment"


@pytest.mark.slow
def test_all_stages(tmp_path, monkeypatch, capsys):
    """One after the other, each from what the one before left."""
    monkeypatch.chdir(tmp_path)
    for name, (recipe, _, changes) in STAGES.items():
        settings = yaml.safe_load((CONFIGS / "demo-rlhf" / f"{name}.yaml").read_text())
        for section, values in changes.items():
            settings[section] = {**settings[section], **values} if isinstance(values, dict) else values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        monkeypatch.setattr(sys, "argv", [recipe, "--config", str(path)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
        assert end.value.code == 0, (name, capsys.readouterr().err)
    results = json.loads(Path("outputs/demo-rlhf/report/metrics.json").read_text())
    assert results["prompts"] == 24 and results["judge"]["accuracy"] >= 0.8
    assert Path("outputs/demo-rlhf/report/index.html").read_text().count("data:image/png;base64,") == 3
