"""Losses: the chunked cross-entropy and the others give what the plain ones give, values and gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from hf_llm import (
    LLMDecoderForSequenceClassification,
    LLMEncoderForQuestionAnswering,
    LLMEncoderForSequenceClassification,
    LLMEncoderForTokenClassification,
)
from hf_llm.backends import cross_entropy
from hf_llm.models import losses
from hf_llm.models.feedforward import Router
from hf_llm.models.losses import (
    classification_loss,
    linear_cross_entropy,
    logits_cross_entropy,
    router_losses,
    span_loss,
    transform_logits,
)

from .native import LLAMA, load_native
from .tiny import (
    EXPERTS,
    SIZES,
    STACKS,
    inputs_of,
    packed_batch,
    redraw,
    target_documents,
    tiny_config,
    tiny_model,
    tokens,
    with_backends,
)


HIDDEN, VOCABULARY = 8, 23
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "logit_scale": {"logit_scale": 0.3},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "ignore_index": {"ignore_index": 5},
    "num_items": {"num_items_in_batch": 37},
    "num_items_tensor": {"num_items_in_batch": torch.tensor(37)},
    "everything": {
        "softcap": 3.0, "logit_scale": 2.0, "label_smoothing": 0.2, "z_loss": 1e-2, "num_items_in_batch": 11,
    },
}  # fmt: skip


def plain_loss(hidden, head, labels, *, logit_scale=None, softcap=None, label_smoothing=0.0, z_loss=0.0,
               ignore_index=-100, num_items_in_batch=None):  # fmt: skip
    """The same from all logits at once, with torch's own cross-entropy."""
    logits = transform_logits(head(hidden).float(), logit_scale, softcap).flatten(0, -2)
    labels = labels.flatten()
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    loss = F.cross_entropy(logits, labels, reduction="sum", **options)
    loss = loss + z_loss * logits.logsumexp(-1).square()[labels != ignore_index].sum()
    return loss / ((labels != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch)


def example(bias: bool = True):
    head = redraw(nn.Linear(HIDDEN, VOCABULARY, bias=bias), std=1.0)
    hidden = torch.randn(3, 7, HIDDEN, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (3, 7))
    labels[0, :3] = labels[2] = -100
    labels[1, 2] = 5
    return hidden, head, labels


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.fixture
def small_chunks(monkeypatch):
    """Four tokens at a time, of which all but three at most are targets."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 4 * VOCABULARY)
    monkeypatch.setattr(losses, "ROW_MULTIPLE", 4)


class Adapted(nn.Module):
    """A head that is not plain: a low-rank addition, as PEFT's."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.out_features = base, base.out_features
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, hidden):
        return self.base(hidden) + self.up(self.down(hidden))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("adapted", (False, True))
def test_linear_cross_entropy_is_torchs(name, bias, adapted, small_chunks):
    """Loss and every gradient, over several chunks, through the weight and through calls of the head."""
    hidden, head, labels = example(bias)
    if name == "ignore_index":
        labels = labels.clamp(min=0)
    head = redraw(Adapted(head), std=1.0) if adapted else head
    parameters = (hidden, *head.parameters())
    loss = linear_cross_entropy(hidden, head, labels, **OPTIONS[name])
    expected = plain_loss(hidden, head, labels, **OPTIONS[name])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    actual_gradients = gradients(3 * loss, *parameters)
    for actual, wanted in zip(actual_gradients, gradients(3 * expected, *parameters)):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_a_graph_that_is_kept_gives_the_same_gradients_again(small_chunks):
    """Though the first backward pass gave them away, to be added to."""
    hidden, head, labels = example()
    loss = 3 * linear_cross_entropy(hidden, head, labels)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        expected = gradients(3 * plain_loss(hidden, head, labels), hidden, *head.parameters())
        for tensor, wanted in zip((hidden, *head.parameters()), expected):
            torch.testing.assert_close(tensor.grad, times * wanted, rtol=1e-5, atol=1e-5)


@with_backends
def test_evaluation_makes_no_gradients(monkeypatch):
    """Nor the memory that they take, though the head's weight could have one."""
    hidden, head, labels = example()
    wanted, made = [], cross_entropy._loss_and_gradients
    monkeypatch.setattr(cross_entropy, "_loss_and_gradients", lambda *args: wanted.append(args[-1]) or made(*args))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            linear_cross_entropy(hidden.detach(), head, labels)
    assert wanted == [[False] * 3, [False, True, True]]


@with_backends
def test_second_derivatives_are_refused():
    hidden, head, labels = example()
    first = torch.autograd.grad(linear_cross_entropy(hidden, head, labels).square(), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@with_backends
@pytest.mark.parametrize("wants", (("hidden", "weight", "bias"), ("hidden",), ("weight",)))
def test_a_compiled_loss_chooses_rows(wants, small_chunks, fresh_compiler):
    """In one graph, though their number depends on the labels; with the gradients that are wanted, in bfloat16 too."""
    hidden, head, labels = example()
    named = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    for name, tensor in named.items():
        tensor.requires_grad_(name in wants)
    tensors, options = [named[name] for name in wants], OPTIONS["everything"]
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, expected = (f(hidden, head, labels, **options) for f in (compiled, linear_cross_entropy))
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for actual, wanted in zip(gradients(3 * loss, *tensors), gradients(3 * expected, *tensors), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


@with_backends
def test_a_compiled_loss_names_a_wrong_label(fresh_compiler):
    hidden, head, labels = example()
    labels[0, 3] = VOCABULARY
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=f"`labels` has {VOCABULARY}, but must be from 0 to {VOCABULARY - 1}"):
        compiled(hidden, head, labels)


@pytest.mark.parametrize("rows", (4, 200))
def test_rows_without_a_target_are_not_read(rows):
    """Not even multiplied by zero: what padding holds may not be finite."""
    _, head, _ = example()
    hidden, labels = torch.randn(rows, HIDDEN), torch.full((rows,), -100)
    hidden[0], labels[1] = torch.nan, 3
    hidden.requires_grad_()
    for gradient in gradients(linear_cross_entropy(hidden, head, labels), hidden, *head.parameters()):
        assert gradient.isfinite().all() and gradient.any()


def test_a_large_loss_scale_is_applied_in_float32():
    """As in float16, whose largest number is 65504."""
    hidden, head, labels = example()
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(hidden, head, labels)
    plain, scaled = (torch.autograd.grad(scale * loss, hidden, retain_graph=True)[0] for scale in (1.0, 2.0**17))
    assert scaled.isfinite().all()
    torch.testing.assert_close(scaled / 2.0**17, plain, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("wants", ("all", "hidden"))
def test_the_loss_of_other_devices_compiles(wants, fresh_compiler):
    """Where a CPU has an operator, accelerators have this function, which their compiler fuses."""
    hidden, head, labels = example()
    head.requires_grad_(wants == "all")
    tensors = (hidden, *head.parameters()) if wants == "all" else (hidden,)
    states, flat = hidden.flatten(0, 1), labels.flatten()
    options = (2.0, 3.0, 0.1, 1e-2, -100, (True, wants == "all", wants == "all"))
    run = lambda: cross_entropy._LinearCrossEntropy.apply(states, head.weight, head.bias, flat, *options)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled(), *tensors), gradients(run(), *tensors), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_cross_entropy_is_torchs(name):
    """The loss where the logits exist already."""
    hidden, head, labels = example()
    options = {**OPTIONS[name]}
    if name == "ignore_index":
        labels = labels.clamp(min=0)
    expected = plain_loss(hidden, head, labels, **options)
    logits = transform_logits(head(hidden), options.pop("logit_scale", None), options.pop("softcap", None))
    torch.testing.assert_close(logits_cross_entropy(logits, labels, **options), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("adapted", (False, True))
def test_no_target_is_no_loss(adapted, small_chunks):
    """Zero, with gradients that are zero, so that the backward pass of such a batch runs."""
    hidden, head, labels = example()
    head = Adapted(head) if adapted else head
    loss = linear_cross_entropy(hidden, head, torch.full_like(labels, -100))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (hidden, *head.parameters()), materialize_grads=True):
        assert (gradient == 0).all()
    assert logits_cross_entropy(head(hidden), torch.full_like(labels, -100)) == 0


@pytest.mark.parametrize("adapted", (False, True))
def test_autocast_is_near_float32(adapted, small_chunks):
    """Under bfloat16 autocast, logits are bfloat16 and the loss is float32; gradients keep their parameters' dtype."""
    hidden, head, labels = example()
    head = redraw(Adapted(head)) if adapted else head
    parameters = (hidden, *head.parameters())
    expected = plain_loss(hidden, head, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, head, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    for actual, wanted in zip(gradients(loss, *parameters), gradients(expected, *parameters)):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, wanted, rtol=5e-2, atol=2e-2)


class LargestTensor(TorchDispatchMode):
    """Writes down the number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.mark.parametrize("adapted", (False, True))
def test_all_logits_never_exist(adapted, small_chunks):
    """In forward and backward pass, no tensor is larger than a chunk of logits or the head's weight."""
    hidden, head, labels = torch.randn(200, HIDDEN, requires_grad=True), nn.Linear(HIDDEN, VOCABULARY), None
    labels = torch.randint(0, VOCABULARY, (200,))
    head = Adapted(head) if adapted else head
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, head, labels).backward()
    assert largest.elements == max(200 * HIDDEN, VOCABULARY * HIDDEN, 4 * VOCABULARY)


@with_backends
@pytest.mark.parametrize("wants", ("nothing", "hidden", "weight"))
def test_only_wanted_gradients_are_computed(wants, small_chunks):
    """Evaluation costs one product of matrices; a frozen head costs two. 11 of 21 rows have targets: 12 are taken."""
    hidden, head, labels = example()
    head.requires_grad_(wants == "weight")
    products = {"nothing": 1, "hidden": 2, "weight": 3}[wants]
    with torch.set_grad_enabled(wants != "nothing"), FlopCounterMode(display=False) as counter:
        linear_cross_entropy(hidden, head, labels)
    assert counter.get_total_flops() == products * 2 * 12 * HIDDEN * VOCABULARY


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": False, "lm_head_bias": True, "logit_scale": 0.5, "final_logit_softcapping": 3.0},
        EXPERTS | {"router_aux_loss_coef": 0.0},
    ],
)
def test_training_loss_is_evaluation_loss(stack, fields, small_chunks):
    """The same loss from chunks and from logits, there in evaluation alone unless `skip_logits` says else."""
    model = tiny_model(stack, **fields)
    batch = packed_batch(stack)
    evaluated = model(**batch)
    assert evaluated.logits.shape == (*batch["labels"].shape, SIZES["vocab_size"])
    skipped = model(**batch, skip_logits=True)
    assert skipped.logits is None
    model.train()
    trained, shown = model(**batch), model(**batch, skip_logits=False)
    assert trained.logits is None and shown.logits is not None
    assert model(**inputs_of(stack)).logits is not None  # without labels
    for output in (skipped, trained, shown):
        torch.testing.assert_close(output.loss, evaluated.loss, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1, "z_loss": 1e-3}, {"num_items_in_batch": torch.tensor(5)}, {"ignore_index": 7}]
)
def test_options_of_the_loss_reach_it(stack, options, small_chunks):
    model = tiny_model(stack)
    batch = packed_batch(stack)
    if "ignore_index" in options:
        batch["labels"] = batch["labels"].masked_fill(batch["labels"] == -100, 7)
    documents = target_documents(batch)
    output = model(**batch, **options)
    labels = batch["labels"]
    if stack == "decoder":
        labels = F.pad(labels[:, 1:], (0, 1), value=options.get("ignore_index", -100))
        ends = documents != F.pad(documents[:, 1:], (0, 1), value=-1)
        labels = labels.masked_fill(ends, options.get("ignore_index", -100))
    expected = plain_loss(output.logits, nn.Identity(), labels, **options)
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(model.train()(**batch, **options).loss, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "use_dora": True},
    ],
)
def test_adapted_heads_learn_like_plain_ones(stack, adapter, small_chunks):
    """LoRA on the head, and a trained copy of it: the chunked loss has the gradients of the plain one."""
    model = tiny_model(stack, tie_word_embeddings=False)
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, **adapter))
    redraw(model)
    batch = packed_batch(stack)
    results = []
    for skip in (True, False):
        model.zero_grad()
        loss = model(**batch, skip_logits=skip).loss
        loss.backward()
        trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        results.append((loss, trained))
    assert any("lm_head" in name for name in results[0][1])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
def test_adapters_open_and_close(stack):
    """Merging an adapter into the head gives the logits that the adapter gave."""
    model = get_peft_model(
        tiny_model(stack, tie_word_embeddings=False), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    )
    redraw(model).eval()
    inputs = inputs_of(stack)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


# -- mixture of experts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", (True, False))
def test_router_losses_are_transformers(masked):
    layers = tuple(torch.randn(10, 4) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]) if masked else None
    balance, z = router_losses(layers, 2, None if mask is None else mask.bool())
    torch.testing.assert_close(balance, load_balancing_loss_func(layers, 4, 2, mask))
    real = torch.ones(10) if mask is None else mask.flatten().float()
    expected = sum((layer.logsumexp(-1).square() * real).sum() / real.sum() for layer in layers) / 3
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize("masked", (True, False))
def test_router_losses_of_rows_are_a_sum_over_rows(masked):
    """Each row's is that of the row alone, so a batch may be divided at will."""
    layers = [torch.randn(3, 5, 4) for _ in range(2)]
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0] * 5]).bool() if masked else torch.ones(3, 5).bool()
    weights = torch.tensor([0.2, 0.5, 0.0 if masked else 0.4])
    together = router_losses([layer.flatten(0, 1) for layer in layers], 2, mask if masked else None, weights)
    expected = [0.0, 0.0]
    for row, weight in enumerate(weights.tolist()):
        if weight:
            alone = router_losses([layer[row] for layer in layers], 2, mask[row])
            expected = [total + weight * loss for total, loss in zip(expected, alone, strict=True)]
    torch.testing.assert_close(list(together), expected)


def router_logits_of(stack_model: nn.Module, model: nn.Module, batch) -> tuple[torch.Tensor, ...]:
    """What the routers of one stack give in a forward pass of the whole model."""
    logits = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
        for layer in stack_model.layers
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return tuple(logits)


@pytest.mark.parametrize("stack", STACKS)
def test_router_losses_train(stack):
    """They are part of the training loss, with their weights, and of the evaluation loss on request alone."""
    model = tiny_model(stack, **EXPERTS, router_aux_loss_coef=0.5, router_z_loss_coef=0.25).train()
    plain = tiny_model(stack, **EXPERTS, router_aux_loss_coef=0.0).train()
    batch = packed_batch(stack)
    halves = {"document_ids": model.model}
    if stack == "encoder_decoder":
        halves = {"document_ids": model.model.encoder, "decoder_document_ids": model.model.decoder}
    expected = 0.0
    for documents, half in halves.items():
        balance, z = router_losses(router_logits_of(half, model, batch), 2, batch[documents] >= 0)
        expected = expected + 0.5 * balance + 0.25 * z
    loss = model(**batch).loss
    torch.testing.assert_close(loss - plain(**batch).loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert len(routers) == 2 * len(halves) and all(router.weight.grad.any() for router in routers)

    model.eval(), plain.eval()
    torch.testing.assert_close(model(**batch).loss, plain(**batch).loss)
    on_request = model(**batch, output_router_logits=True).loss
    torch.testing.assert_close(on_request, loss, rtol=1e-4, atol=1e-5)


# -- task heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "num_labels", "problem_type"),
    [
        (torch.tensor([0, 2, 1, 2]), 3, "single_label_classification"),
        (torch.tensor([0.5, -1.0, 2.0, 0.0]), 1, "regression"),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), 3,
         "multi_label_classification"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("head", (LLMDecoderForSequenceClassification, LLMEncoderForSequenceClassification))
@pytest.mark.parametrize("told", (True, False))
def test_classification_losses(labels, num_labels, problem_type, head, told):
    """The kind of problem is told or found, and accumulated gradients are those of the whole batch."""
    stack = "decoder" if head is LLMDecoderForSequenceClassification else "encoder"
    problem = {"problem_type": problem_type} if told else {}
    model = redraw(head(tiny_config(stack, num_labels=num_labels, **problem))).eval()
    ids = tokens(4, 6)
    output = model(ids, labels=labels)
    expected = {
        "single_label_classification": lambda logits: F.cross_entropy(logits, labels),
        "regression": lambda logits: F.mse_loss(logits[:, 0], labels),
        "multi_label_classification": lambda logits: F.binary_cross_entropy_with_logits(logits, labels),
    }[problem_type](output.logits)
    torch.testing.assert_close(output.loss, expected)
    whole = torch.autograd.grad(output.loss, model.score.weight)[0]
    items = torch.tensor(labels.numel())
    parts = [model(ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=items).loss for i in (0, 2)]
    torch.testing.assert_close(torch.autograd.grad(sum(parts), model.score.weight)[0], whole)


def test_token_classification_loss():
    model = redraw(LLMEncoderForTokenClassification(tiny_config("encoder", num_labels=3))).eval()
    labels = torch.tensor([[0, 2, -100, 1], [-100, -100, 2, 2]])
    output = model(tokens(2, 4), labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), labels.flatten()))
    half = model(tokens(2, 4), labels=labels, num_items_in_batch=10).loss
    torch.testing.assert_close(half * 2, output.loss)


def test_span_loss():
    """Positions beyond the text are ignored."""
    model = redraw(LLMEncoderForQuestionAnswering(tiny_config("encoder"))).eval()
    start, end = torch.tensor([1, 9]), torch.tensor([2, 3])
    output = model(tokens(2, 4), start_positions=start, end_positions=end)
    expected = F.cross_entropy(output.start_logits[:1], start[:1]) + F.cross_entropy(output.end_logits, end)
    torch.testing.assert_close(output.loss, expected / 2)
    torch.testing.assert_close(span_loss(output.start_logits, output.end_logits, start, end), output.loss)


def test_regression_on_several_targets():
    logits, labels = torch.randn(3, 2), torch.randn(3, 2)
    torch.testing.assert_close(classification_loss(logits, labels, "regression"), F.mse_loss(logits, labels))


# -- Trainer ----------------------------------------------------------------------------------------------------------


def as_llama() -> tuple[LlamaForCausalLM, nn.Module]:
    """A random Llama, and the same model as ours."""
    native = redraw(LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)))
    return native, load_native(tiny_model("decoder", qk_norm=None), native, LLAMA)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_trainer_gives_what_it_gives_with_llama(smoothing, tmp_path):
    """Training with accumulation, evaluation with `compute_metrics`, with and without label smoothing."""
    rows = []
    for i in range(12):
        ids = tokens(1, 8, seed=i)[0]
        mask = torch.ones(8, dtype=torch.long)
        mask[8 - i % 4 :] = 0
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})

    def accuracy(evaluation):
        predictions, labels = evaluation.predictions.argmax(-1)[:, :-1], evaluation.label_ids[:, 1:]
        return {"accuracy": float((predictions == labels)[labels != -100].mean())}

    results = []
    for name, model in zip(("native", "ours"), as_llama()):
        arguments = TrainingArguments(
            tmp_path / name, use_cpu=True, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", logging_steps=1, report_to=[],
            label_smoothing_factor=smoothing, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows[:8], eval_dataset=rows[8:], compute_metrics=accuracy)
        before = trainer.evaluate()
        trainer.train()
        losses_seen = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        norms_seen = [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log]
        after = trainer.evaluate()
        figures = [run[f"eval_{key}"] for run in (before, after) for key in ("loss", "accuracy")]
        results.append(torch.tensor([*figures, *losses_seen, *norms_seen]))
    assert len(results[0]) == 10
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
