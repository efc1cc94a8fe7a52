"""EleutherAI's lm-evaluation-harness on a checkpoint with its own code, on local tasks, against scores by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from hf_llm.evaluation import perplexity

from .conftest import TEXTS


QUESTIONS = [("Two roads", [" diverged", " xyz", "!"]), ("To be", [" or", "?"]), ("naïve", [" cafe", "té", "ab"])]


def task(name: str, data, **fields) -> dict:
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": str(data)}}}
    return {"task": name, **source, "validation_split": "validation", "test_split": "validation", **fields}


@torch.no_grad()
def continuation_logprob(opened, context: str, continuation: str) -> float:
    start, whole = (
        opened.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (context, context + continuation)
    )
    logprobs = opened.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return float(sum(logprobs[i - 1, whole[i]] for i in range(len(start), len(whole))))


@pytest.mark.slow
def test_the_harness_gives_the_scores_of_hand(language_models, tmp_path):
    opened = language_models["decoder"]
    opened.model.save_pretrained(tmp_path / "model")
    opened.tokenizer.save_pretrained(tmp_path / "model")
    best = [int(np.argmax([continuation_logprob(opened, q, c) for c in choices])) for q, choices in QUESTIONS]
    labels = [best[0], best[1], (best[2] + 1) % 3]  # two of three are right
    rows = [{"question": q, "choices": c, "label": y} for (q, c), y in zip(QUESTIONS, labels)]
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [text for text in TEXTS if len(text.encode()) < 60]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    choice = task(
        "local_choice",
        tmp_path / "choice.jsonl",
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="{{label}}",
        doc_to_choice="{{choices}}",
        metric_list=[{"metric": "acc"}],
    )
    rolling = task(
        "local_texts",
        tmp_path / "texts.jsonl",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    for one in (choice, rolling):
        (tmp_path / f"{one['task']}.yaml").write_text(yaml.safe_dump(one))
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "2"),
        # without add_bos_token=False, texts get the tokenizer's start token beside the harness's own
        *("--model_args", f"pretrained={tmp_path / 'model'},trust_remote_code=True,dtype=float32,add_bos_token=False"),
        *("--tasks", "local_choice,local_texts", "--include_path", str(tmp_path), "--output_path", "results"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "results").rglob("*.json")).read_text())["results"]
    assert results["local_choice"]["acc,none"] == pytest.approx(2 / 3)
    expected = perplexity.figures(scored.sums() for scored in perplexity.score_texts(opened, texts))
    assert results["local_texts"]["bits_per_byte,none"] == pytest.approx(expected["bits_per_byte"], abs=1e-5)
