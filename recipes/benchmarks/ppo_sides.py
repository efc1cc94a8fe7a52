"""One PPO run of either side of the benchmark in ppo.py, which starts it: ppo_sides.py SIDE FOLDER OUT PLAN-AS-JSON

Runs under two environments: nothing here imports hf_llm before its own side does. Writes OUT/policy, a plain Llama,
and prints the processor's seconds of `train()` as its last line: on one thread they are the wall clock's on an idle
machine, and do not count what else a busy one does.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM


COMMON = {
    "logging_steps": 4,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "kl_coef": 0.05,
    "gamma": 1.0,
    "lam": 0.95,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "missing_eos_penalty": 1.0,
    "temperature": 1.0,
}


def ours(folder: Path, out: Path, plan: dict):
    from hf_llm.rlhf import PPOConfig, PPOTrainer

    args = PPOConfig(
        str(out),
        per_device_train_batch_size=plan["micro_batch"],
        gradient_accumulation_steps=plan["rollout"] // plan["micro_batch"],
        num_iterations=plan["epochs"],
        max_steps=plan["episodes"] // plan["rollout"] * plan["epochs"],
        max_completion_length=plan["length"],
        learning_rate=plan["learning_rate"],
        seed=plan["seed"],
        max_grad_norm=0.0,  # the peer clips nothing
        critic="reward_model",
        **COMMON,
    )
    return PPOTrainer(
        LlamaForCausalLM.from_pretrained(folder / "policy"),
        str(folder / "reward"),
        args,
        load_from_disk(str(folder / "prompts")),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )


def peer(folder: Path, out: Path, plan: dict):
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    args = PPOConfig(
        str(out),
        per_device_train_batch_size=plan["micro_batch"],
        gradient_accumulation_steps=plan["rollout"] // plan["micro_batch"],
        num_ppo_epochs=plan["epochs"],
        total_episodes=plan["episodes"],
        response_length=plan["length"],
        learning_rate=plan["learning_rate"],
        seed=plan["seed"],
        stop_token="eos",
        num_sample_generations=0,
        local_rollout_forward_batch_size=plan["rollout"],
        **COMMON,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    prompts = load_from_disk(str(folder / "prompts"))
    ids = prompts.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=["prompt"])
    value, reward = (AutoModelForSequenceClassification.from_pretrained(folder / "reward") for _ in range(2))
    return PPOTrainer(
        args,
        tokenizer,
        LlamaForCausalLM.from_pretrained(folder / "policy"),
        LlamaForCausalLM.from_pretrained(folder / "policy"),
        reward,
        ids,
        value,
        eval_dataset=ids.select(range(plan["rollout"])),
    )


if __name__ == "__main__":
    side, folder, out, plan = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(plan["threads"])
    trainer = {"ours": ours, "peer": peer}[side](folder, out, plan)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    trainer.save_model(str(out / "policy"))
    print(seconds)
