"""`hf-llm serve` on a checkpoint of hf_llm: the command as users type it, offline."""

import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


NEW = 48
QUESTIONS = ("Write def main():", "import os", "What is a class? Explain it to me in a few words.")
MODES = {"one by one": [], "continuous batching": ["--continuous-batching", "--cb-num-blocks", "64",
                                                   "--cb-max-batch-tokens", "64"]}  # fmt: skip


@pytest.fixture(params=MODES.values(), ids=MODES)
def client(request, demo, tmp_path):
    """A client of a server that has loaded the demo's checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_llm_cli", "serve", str(demo), "--device", "cpu", "--host", "127.0.0.1"]
    command += ["--port", str(port), *request.param]
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen, log) -> None:
    for _ in range(800):
        if server.poll() is not None:
            log.seek(0)
            pytest.fail(f"the server stopped: {log.read()}")
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.25)
    pytest.fail("the server did not start")


def stream(client: openai.OpenAI, model: str, question: str) -> list[str]:
    """The pieces of an answer, as they come."""
    messages = [{"role": "user", "content": question}]
    chunks = client.chat.completions.create(
        model=model, messages=messages, stream=True, temperature=0.0, max_tokens=NEW
    )
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]


@pytest.mark.slow
def test_a_streamed_chat_is_what_generate_gives(client, demo):
    """Several at the same time, each in pieces."""
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        answers = list(threads.map(lambda question: stream(client, str(demo), question), QUESTIONS))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(demo).eval(), AutoTokenizer.from_pretrained(demo)
    for question, pieces in zip(QUESTIONS, answers, strict=True):
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert len(pieces) > 1
        assert "".join(pieces) == tokenizer.decode(output, skip_special_tokens=True)
