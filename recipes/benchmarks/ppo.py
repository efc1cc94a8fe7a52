"""PPO beside the last release of TRL that had it: episodes per second, and the reward that is reached.

    python -m venv peer && peer/bin/pip install torch==2.13.0 && peer/bin/pip install trl==1.12.0 transformers==5.23.0
    python recipes/benchmarks/ppo.py --peer peer/bin/python [--repeats 3] [--episodes 384]

Both sides begin with the same native Llama (3.3 M parameters, taught to go on with rated sentences) and the same
reward model (a Llama as well, taught their ratings), which are made once in `--folder`. Separate critics that begin as
the reward model, float32, no dropout. Batches and lengths are those of TRL's own example for TL;DR (rollouts of 64 in
micro-batches of 16, four epochs of one optimizer step each, 53 tokens, a penalty of 1 without an end token), the
coefficients TRL's defaults. Runs take turns; seconds are the processor's, of `train()` on one thread. Then each final
policy goes on with prompts that neither saw, and the reward model judges (the last token, in one way for both).

What differs, beside what either PPO does in its own way (where the score lands, which tokens count): the peer is given
prompts as token ids, and generates a whole rollout at once as ours does; the head of its critic is the reward model's,
ours is new; neither clips gradients, because the peer cannot.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_llm.data import train_tokenizer
from hf_llm.data.tasks import load_task


SIZES = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
}
PROMPT_WORDS = 4
Row = tuple[list[int], float]  # token ids with an end token, rating


# ---- what both sides begin with ------------------------------------------------------------------------------------


def prepare(folder: Path, epochs: int) -> None:
    """Write prompts, policy and reward model, each with the tokenizer."""
    train, test = load_task("sentiment-ratings", "train"), load_task("sentiment-ratings", "test")
    tokenizer = train_tokenizer(train["text"], "bpe", 8192, show_progress=False)
    fields = {**SIZES, "vocab_size": len(tokenizer)}
    fields |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    rows = [
        ([*tokenizer(text)["input_ids"][:95], tokenizer.eos_token_id], rating)
        for text, rating in zip(train["text"], train["rating"], strict=True)
    ]
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**fields))
    fit(policy, rows, epochs, lambda batch, _: policy(**batch, labels=labels_of(batch)).loss)
    reward = LlamaForSequenceClassification(LlamaConfig(**fields, num_labels=1))
    reward.model.load_state_dict(policy.model.state_dict())
    fit(reward, rows, epochs, lambda batch, ratings: ((reward(**batch).logits[:, 0] - ratings) ** 2).mean())
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, texts in (("prompts", train["text"]), ("held_out", test["text"])):
        firsts = [" ".join(text.split()[:PROMPT_WORDS]) for text in texts]
        Dataset.from_dict({"prompt": firsts}).save_to_disk(str(folder / name))


def fit(model, rows: list[Row], epochs: int, loss_of) -> None:
    """Train by AdamW on batches of rows of like lengths."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [sorted(rows, key=lambda row: len(row[0]))[i : i + 64] for i in range(0, len(rows), 64)]
    plan = [batches[i] for _ in range(epochs) for i in torch.randperm(len(batches))]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=len(plan) + 1)
    for batch in plan:
        loss = loss_of(
            padded([ids for ids, _ in batch], model.config.pad_token_id), torch.tensor([r for _, r in batch])
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters, last loss {loss.item():.3f}", flush=True)


def padded(rows: list[list[int]], filler: int) -> dict[str, torch.Tensor]:
    """Ids and mask (batch, longest), padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != filler).long()}


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["input_ids"].where(batch["attention_mask"] == 1, -100)


# ---- measuring -----------------------------------------------------------------------------------------------------


def run_side(side: str, python: str, folder: Path, out: Path, plan: dict) -> float:
    """Processor seconds of one training."""
    script = Path(__file__).with_name("ppo_sides.py")
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan["threads"])}
    command = [python, str(script), side, str(folder), str(out), json.dumps(plan)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    (out.parent / f"{out.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


@torch.no_grad()
def judge(path: Path, folder: Path, length: int, prompts: int) -> tuple[float, float]:
    """Mean reward and mean length in tokens of a policy's completions of held-out prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy = LlamaForCausalLM.from_pretrained(path).eval()
    reward = LlamaForSequenceClassification.from_pretrained(folder / "reward").eval()
    texts = Dataset.load_from_disk(str(folder / "held_out"))["prompt"][:prompts]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sampling = {"do_sample": True, "top_k": 0, "eos_token_id": end, "pad_token_id": pad, "max_new_tokens": length}
    output = policy.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **sampling)
    rows = [[token for token in row if token != pad] for row in output.tolist()]
    given = inputs["attention_mask"].sum().item()
    return reward(**padded(rows, pad)).logits.mean().item(), (sum(map(len, rows)) - given) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python of an environment with trl==1.12.0")
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark-ppo"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=384)
    parser.add_argument("--rollout", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--length", type=int, default=53)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=512, help="held-out prompts that final policies go on with")
    parser.add_argument("--teaching-epochs", type=int, default=2, help="of policy and reward model, before PPO")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.folder
    if not (folder / "held_out").exists():
        prepare(folder, arguments.teaching_epochs)
    names = ("episodes", "rollout", "micro_batch", "epochs", "length", "learning_rate", "threads")
    plan = {name: getattr(arguments, name) for name in names}
    print(f"{plan}\nbefore: reward and length {judge(folder / 'policy', folder, plan['length'], arguments.prompts)}")
    found = {"peer": [], "ours": []}
    for seed in range(arguments.repeats):
        for side, python in (("peer", arguments.peer), ("ours", sys.executable)):
            out = folder / f"{side}-{seed}"
            seconds = run_side(side, python, folder, out, {**plan, "seed": seed})
            reward, length = judge(out / "policy", folder, plan["length"], arguments.prompts)
            found[side].append((plan["episodes"] / seconds, reward, length))
            print(f"{side}, seed {seed}: {found[side][-1]}", flush=True)
    print("\n| | episodes/s of one core | final reward | length |\n|---|---:|---:|---:|")
    for side, title in (("peer", "TRL 1.12.0"), ("ours", "hf_llm")):
        rate, reward, length = (statistics.median(values) for values in zip(*found[side], strict=True))
        print(f"| {title} | {rate:.2f} | {reward:.3f} | {length:.1f} |")
    ratios = [mine[0] / other[0] for mine, other in zip(found["ours"], found["peer"], strict=True)]
    print(f"\nepisodes per second, ours over theirs: {statistics.median(ratios):.2f} (median of {ratios})")


if __name__ == "__main__":
    main()
