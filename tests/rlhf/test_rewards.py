"""Reward models score what they were trained on; functions are checked."""

import asyncio
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from trl import RewardConfig, RewardTrainer

from hf_llm.rlhf.reward_functions import make_reward_function
from hf_llm.rlhf.rewards import RewardModel, checked

from . import toys


TEMPLATE = "{% for m in messages %}{{ '<s> ' + m['content'] + ' ' }}{% endfor %}"
TEXTS = [("a b", " c d"), ("a", " c"), ("b", " e f g h")]


def reward_trainer(folder, pairs: Dataset, tokenizer, **fields) -> RewardTrainer:
    args = RewardConfig(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    return RewardTrainer(toys.reward_model(**fields), args, train_dataset=pairs, processing_class=tokenizer)


def pairs_of(conversational: bool) -> Dataset:
    rows = [{"prompt": p, "chosen": c, "rejected": " l" + c} for p, c in TEXTS]
    if conversational:
        say = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{k: [{"role": say[k], "content": v.strip()}] for k, v in row.items()} for row in rows]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("conversational", [False, True], ids=["text", "conversation"])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_scores_inside_ppo_are_those_of_the_trained_and_saved_model(conversational, pad, tmp_path):
    tokenizer = toys.make_tokenizer(order=toys.LETTERS[::-1], pad_token=pad)  # not the policy's
    tokenizer.chat_template = TEMPLATE
    pairs = pairs_of(conversational)
    training = reward_trainer(tmp_path, pairs, tokenizer, pad_token_id=None)
    training.train()
    training.save_model(str(tmp_path / "rm"))
    with torch.no_grad():  # chosen texts, as RewardTrainer tokenized, collated and scored them
        batch = training.data_collator([training.train_dataset[i] for i in range(len(pairs))])
        expected = training.model.eval()(**batch).logits[: len(pairs), 0]

    policy_tokenizer = toys.make_tokenizer()
    policy_tokenizer.chat_template = TEMPLATE
    run = toys.trainer(
        tmp_path / "ppo",
        rewards=str(tmp_path / "rm"),
        arguments={"processing_class": policy_tokenizer},
        reward_batch_size=2,
    )
    prompts, chosen = pairs["prompt"], pairs["chosen"]
    scores = run._calculate_rewards([{} for _ in prompts], list(prompts), list(chosen), [[1]] * 3)
    torch.testing.assert_close(scores[:, 0], expected, rtol=0, atol=1e-6)
    assert scores.unique().numel() == 3


def test_a_classifier_is_given_no_end_token_where_it_was_trained_without():
    tokenizer = toys.make_tokenizer()
    model = toys.reward_model()
    scorer = RewardModel(model, tokenizer, batch_size=1, append_eos=False)
    ids = tokenizer("a b c d")["input_ids"]
    assert scorer.tokenize("a b", " c d") == ids
    assert RewardModel(model, tokenizer, batch_size=1).tokenize("a b", " c d") == [*ids, tokenizer.eos_token_id]
    assert RewardModel(model, tokenizer, batch_size=1).tokenize("a b", " c d<eos>").count(tokenizer.eos_token_id) == 1
    with torch.no_grad():
        assert scorer(["a b"], [" c d"]) == [model(torch.tensor([ids])).logits.item()]


def test_an_encoder_judges_a_decoder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    judge = BertForSequenceClassification(BertConfig(vocab_size=16, num_labels=1, pad_token_id=0, **sizes))
    run = toys.trainer(
        tmp_path, rewards=judge, arguments={"reward_processing_classes": toys.make_tokenizer("lkjihgfedcba")}
    )
    run.train()
    assert type(run.critic.backbone).__name__ == "LLMDecoderModel"  # a critic must not look ahead
    assert len(toys.logged(run, "reward")) == 3


def test_several_rewards_sync_and_async_are_weighted(tmp_path):
    seen = {}

    async def slow(completions, letter, trainer_state, **kwargs):
        await asyncio.sleep(0.01)
        seen["columns"], seen["step"] = letter, trainer_state.global_step
        return [2.0] * len(completions)

    class Sometimes:
        def __call__(self, prompts, completions, completion_ids, **kwargs):
            assert len(prompts) == len(completions) == len(completion_ids)
            return [None if i % 2 else 1.0 for i in range(len(prompts))]

    data = toys.prompts().add_column("letter", ["z"] * 64)
    run = toys.trainer(
        tmp_path,
        rewards=[slow, Sometimes(), toys.reward_model()],
        arguments={
            "train_dataset": data,
            "reward_processing_classes": [None, None, toys.make_tokenizer()],
        },
        reward_weights=[1.0, 10.0, 0.0],
        max_steps=1,
    )
    run.train()
    assert seen == {"columns": ["z"] * 8, "step": 0}
    assert toys.logged(run, "reward") == [7.0]  # 2 + 10 / 2
    assert toys.logged(run, "rewards/Sometimes/mean") == [1.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([float("nan"), 1.0], "returned nan for completion 0"),
        ([1.0, float("inf")], "returned inf for completion 1"),
        (["good", 1.0], "returned 'good' for completion 0"),
        (None, "returned None instead of a list"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_bad_rewards(returned, message, asynchronous):
    def mine(**kwargs):
        return returned

    async def mine_async(**kwargs):
        return returned

    function = checked(mine_async if asynchronous else mine)
    with pytest.raises(ValueError, match=f"reward function mine.* {message}"):
        answer = function(prompts=["a", "b"], completions=["c", "d"])
        asyncio.run(answer) if asynchronous else None


def test_a_function_that_cannot_be_called_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="function mine got an unexpected keyword argument .* let it take "):

        def mine(prompts, completions):
            return [0.0] * len(prompts)

        toys.trainer(tmp_path, rewards=mine)


def test_a_reward_model_that_breaks_is_named(tmp_path):
    """Beside another reward too, where a score that is no number would pass for an abstention."""
    broken = toys.reward_model()
    with torch.no_grad():
        broken.score.weight.fill_(float("nan"))
    arguments = {"reward_processing_classes": [toys.make_tokenizer(), None]}
    run = toys.trainer(tmp_path, rewards=[broken, toys.share_of_a], arguments=arguments)
    with pytest.raises(ValueError, match="reward model LLMDecoderForSequenceClassification gave nan for completion 0"):
        run.train()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda count: [None] * count, "no reward function returned a number for completion 0"),
        (lambda count: [1.0], "'mine' returned 1 rewards, but 8 were expected"),  # TRL's own
    ],
)
def test_each_completion_must_have_a_score(scores, message, tmp_path):
    def mine(completions, **kwargs):
        return scores(len(completions))

    with pytest.raises(ValueError, match=message):
        toys.trainer(tmp_path, rewards=[mine, mine]).train()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: toys.reward_model(num_labels=3), "has 3 labels"),
        (lambda folder: toys.decoder().save_pretrained(folder) or str(folder), "no trained reward model"),
        (lambda folder: toys.reward_model(), "no tokenizer for reward model .* reward_processing_classes"),
        (lambda folder: toys.reward_model(vocab_size=9), "has embeddings for 9 tokens, but its tokenizer has 15"),
        (lambda folder: 3.0, "neither a model, nor a path, nor a function"),
    ],
)
def test_bad_reward_models(make, message, tmp_path):
    tokenizer = None if "no tokenizer" in message else toys.make_tokenizer()
    with pytest.raises(ValueError, match=message):
        toys.trainer(tmp_path, rewards=make(tmp_path / "model"), arguments={"reward_processing_classes": tokenizer})


def test_conversations_need_a_chat_template(tmp_path):
    """Of the policy's tokenizer before training, of a reward model's in the first rollout."""
    talks = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]] * 8})
    tokenizer, bare = toys.make_tokenizer(), toys.make_tokenizer()
    arguments = {"train_dataset": talks, "processing_class": tokenizer, "reward_processing_classes": bare}
    with pytest.raises(ValueError, match="chat_template is not set"):
        toys.trainer(tmp_path, rewards=toys.reward_model(), arguments=arguments)
    tokenizer.chat_template = TEMPLATE
    run = toys.trainer(tmp_path, rewards=toys.reward_model(), arguments=arguments)
    with pytest.raises(ValueError, match="chat_template is not set"):
        run.train()


def test_texts_longer_than_a_reward_model_reads(tmp_path):
    short = toys.reward_model(max_position_embeddings=4)
    run = toys.trainer(tmp_path, rewards=short, arguments={"reward_processing_classes": toys.make_tokenizer()})
    with pytest.raises(ValueError, match="tokens for reward model .* which has 4 positions"):
        run.train()


def test_saved_reward_models_open_with_the_stock_class(tmp_path):
    """What a folder holds is what PPO scores with: no head is made up."""
    model = toys.reward_model()
    model.save_pretrained(tmp_path / "rm")
    toys.make_tokenizer().save_pretrained(tmp_path / "rm")
    run = toys.trainer(tmp_path / "ppo", rewards=str(tmp_path / "rm"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    own = run.reward_models[0].model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in stock.state_dict().items())


def test_a_reward_function_of_a_file_imports_its_neighbours_and_takes_options(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "polite_words.py").write_text("WORDS = {'please'}\n")
    (tmp_path / "my_polite_rewards.py").write_text(
        "from polite_words import WORDS\n\n\n"
        "def politeness(completions, scale=1.0, **columns):\n"
        "    return [scale * bool(WORDS & set(text.split())) for text in completions]\n"
    )
    for name in ("my_polite_rewards.py:politeness", "my_polite_rewards:politeness"):
        reward = make_reward_function(name, {"scale": 2.0}, [])
        assert reward.__name__ == "politeness" and reward(completions=["please go", "go"]) == [2.0, 0.0]
