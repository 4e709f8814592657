"""The same model and rows through TRL's own trainers: equal loss and equal gradient of every parameter.

Each trainer is the real one, on a Qwen3 of one layer. Where a convention differs, the test states it, converts by it
and shows that nothing else differs.
"""

import pytest
import torch
from torch.nn import functional

from limbeck.objectives import OBJECTIVES, check_knobs, evaluate
from limbeck.objectives.reduce import count, divisor, total

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT, ROWS = 3, 4
COMPLETIONS = (5, 3, 4, 2)
GEN = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 20, (ROWS, PROMPT + max(COMPLETIONS)), generator=GEN)
LIVE = torch.arange(max(COMPLETIONS))[None] < torch.tensor(COMPLETIONS)[:, None]
PRESENT = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.bool), LIVE], 1)
COMPLETION_MASK = torch.cat([torch.zeros(ROWS, PROMPT, dtype=torch.bool), LIVE], 1)
ADVANTAGES = torch.tensor([1.3, -0.7, 0.4, -1.1])
REWARDS = torch.tensor([1.0, 1.0, 0.0, 0.0])


def model(seed):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=None,
            initializer_range=0.3,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(17))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("trl"))
    return {
        "output_dir": out, "report_to": [], "use_cpu": True, "bf16": False, "logging_strategy": "no",
        "save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": ROWS,
    }  # fmt: skip


def table(**columns):
    from datasets import Dataset

    return Dataset.from_list([columns] * ROWS)


def scored(network):
    """Log-probs of the completion tokens, aligned to them."""
    logits = network(input_ids=IDS, attention_mask=PRESENT.long()).logits[:, PROMPT - 1 : -1].float()
    return logits, logits.log_softmax(-1).gather(2, IDS[:, PROMPT:, None])[..., 0]


def ours(network, name, inputs, *, normalizer=None, length=1.0, **given):
    row = OBJECTIVES[name]
    logits, logprobs = scored(network)
    ready = {"logits": logits, "logprobs": logprobs, **inputs}
    values = evaluate(row, ready, LIVE, check_knobs(row, given)).values
    rule = normalizer or row.normalizer
    by = divisor(count(LIVE, pairs=len(inputs.get("pairs", ()))), row.unit, rule, length=length)
    return total(values, row.unit, LIVE, rule) / by


def same(network, our_loss, their_loss):
    """Equal in value and in the gradient of every parameter."""
    torch.testing.assert_close(our_loss, their_loss, rtol=2e-5, atol=1e-6)
    parameters = [p for p in network.parameters() if p.requires_grad]
    mine = torch.autograd.grad(our_loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(their_loss, parameters)
    assert max(g.abs().max() for g in theirs) > 1e-3
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def per_token(rows):
    return torch.where(LIVE, rows[:, None], 0.0)


# ------------------------------------------------------------------------------------------------------ likelihood


@pytest.mark.parametrize(("name", "loss_type"), [("sft", "nll"), ("dft", "dft")])
def test_likelihood(name, loss_type, common, tokenizer):
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**common, loss_type=loss_type)
    trainer = SFTTrainer(model(0), args=config, train_dataset=table(text="w1 w2"), processing_class=tokenizer)
    labels = IDS.masked_fill(~COMPLETION_MASK, -100)
    batch = {"input_ids": IDS, "attention_mask": PRESENT.long(), "labels": labels}
    their = trainer.compute_loss(trainer.model, batch, num_items_in_batch=LIVE.sum())
    same(trainer.model, ours(trainer.model, name, {}), their)


# ------------------------------------------------------------------------------------------------------ preference

PAIRS = {"pairs": torch.tensor([[0, 2], [1, 3]]), "pair_weights": torch.ones(2)}


def reference_inputs():
    return {"reference_logprobs": scored(model(1))[1].detach()}


def preference_loss(loss_type, common, tokenizer, **config):
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(**common, loss_type=[loss_type], **config)
    data = table(prompt="w1 w2", chosen="w3", rejected="w4")
    trainer = DPOTrainer(model(0), ref_model=model(1), args=args, train_dataset=data, processing_class=tokenizer)
    # TRL stacks chosen rows over rejected rows; ours names them by index.
    batch = {"input_ids": IDS, "attention_mask": PRESENT.long(), "completion_mask": COMPLETION_MASK.long()}
    return trainer.model, trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize(
    ("name", "loss_type", "given"),
    [
        ("dpo", "sigmoid", {"beta": 0.3}),
        ("dpo_norm", "sigmoid_norm", {"beta": 2.0}),
        ("ipo", "ipo", {"beta": 0.2, "length_norm": True}),
    ],
)
def test_preference(name, loss_type, given, common, tokenizer):
    network, their = preference_loss(loss_type, common, tokenizer, beta=given["beta"])
    same(network, ours(network, name, {**reference_inputs(), **PAIRS}, **given), their)


def test_ipo_sums_by_default_where_trl_takes_means(common, tokenizer):
    """Stated difference: sums over tokens. Answers of equal length T and beta / T make the two one, up to T**2."""
    _, their = preference_loss("ipo", common, tokenizer, beta=0.2)
    network = model(0)
    inputs = {**reference_inputs(), **PAIRS}
    summed = ours(network, "ipo", inputs, beta=0.2)
    assert abs(summed - their) > 0.1
    row, (_, s) = OBJECTIVES["ipo"], scored(network)
    pairs = {"pairs": torch.tensor([[0, 2]]), "pair_weights": torch.ones(1)}
    even = LIVE & (torch.arange(max(COMPLETIONS)) < 4)
    x = {"logprobs": s, **reference_inputs(), **pairs}
    mean = evaluate(row, x, even, check_knobs(row, {"beta": 0.2, "length_norm": True})).values
    total_form = evaluate(row, x, even, check_knobs(row, {"beta": 0.2 / 4})).values
    torch.testing.assert_close(total_form, 16 * mean)


def test_simpo(common, tokenizer):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    args = CPOConfig(**common, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.7)
    data = table(prompt="w1 w2", chosen="w3", rejected="w4")
    trainer = CPOTrainer(model(0), args=args, train_dataset=data, processing_class=tokenizer)
    means = torch.where(LIVE, scored(trainer.model)[1], 0.0).sum(-1) / LIVE.sum(-1)
    their = trainer.cpo_loss(means[:2], means[2:])[0].mean()
    same(trainer.model, ours(trainer.model, "simpo", PAIRS, beta=2.0, gamma=0.7), their)


@pytest.mark.parametrize("loss_type", ["apo_zero_unpaired", "kto"])
def test_kto(loss_type, common, tokenizer):
    """Stated difference: the reference point is a number given to ours, an estimate on mismatched rows in TRL."""
    from trl import KTOConfig, KTOTrainer

    args = KTOConfig(**common, loss_type=loss_type, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    data = table(prompt="w1 w2", completion="w3", label=True)
    data = data.map(lambda row, i: {"label": i % 2 == 0}, with_indices=True)
    trainer = KTOTrainer(model(0), ref_model=model(1), args=args, train_dataset=data, processing_class=tokenizer)
    batch = {
        "input_ids": IDS,
        "attention_mask": PRESENT.long(),
        "completion_mask": COMPLETION_MASK.long(),
        "label": REWARDS > 0,
    }
    reference_point = 0.0
    if loss_type == "kto":
        shuffled = IDS.roll(1, 0).clone()
        shuffled[:, :PROMPT] = IDS[:, :PROMPT]
        batch |= {
            "KL_input_ids": shuffled,
            "KL_attention_mask": PRESENT.long(),
            "KL_completion_mask": COMPLETION_MASK.long(),
        }
        with torch.no_grad():
            gap = trainer._compute_kl_logps(trainer.model, batch) - trainer._compute_kl_logps(trainer.ref_model, batch)
        reference_point = gap.mean().clamp(min=0).item()
    their = trainer.compute_loss(trainer.model, batch)
    given = {"beta": 0.3, "weight_right": 1.5, "weight_wrong": 0.5, "reference_point": reference_point}
    same(trainer.model, ours(trainer.model, "kto", {**reference_inputs(), "rewards": REWARDS}, **given), their)


# ---------------------------------------------------------------------------------------------------------- policy

OLD = scored(model(0))[1].detach() + 0.4 * torch.randn(LIVE.shape, generator=GEN)


def policy_loss(common, tokenizer, *, beta=0.0, **config):
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(**common, num_generations=2, max_completion_length=11, **config)
    trainer = GRPOTrainer(
        model(0), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
        train_dataset=table(prompt="w1"), processing_class=tokenizer,
    )  # fmt: skip
    trainer.beta = beta  # set late: the config would load a reference by name, and the batch brings its scores
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    batch = {
        "prompt_ids": IDS[:, :PROMPT], "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": IDS[:, PROMPT:], "completion_mask": LIVE.long(), "advantages": ADVANTAGES,
        "old_per_token_logps": OLD, "num_items_in_batch": LIVE.sum().float(),
        "ref_per_token_logps": scored(model(1))[1].detach(),
    }  # fmt: skip
    return trainer.model, trainer._compute_loss(trainer.model, batch)


@pytest.mark.parametrize(
    ("name", "config", "given"),
    [
        ("grpo", {"loss_type": "grpo", "epsilon": 0.1}, {"clip_low": 0.1, "clip_high": 0.1}),
        ("dapo", {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}, {}),
        ("dr_grpo", {"loss_type": "dr_grpo"}, {}),
        ("ppo", {"loss_type": "dapo", "delta": 1.5}, {"dual_clip": 1.5}),
        ("grpo:kl", {"loss_type": "grpo", "beta": 0.3}, {"beta_kl": 0.3, "ratio_weighted": True}),
        ("grpo:kl", {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}, {"beta_kl": 0.3}),
        ("sapo", {"loss_type": "sapo"}, {}),
        (
            "gspo",
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
            {"clip_low": 0.05, "clip_high": 0.05},
        ),
    ],
    ids=["grpo", "dapo", "dr_grpo", "ppo-dual-clip", "grpo-kl", "grpo-k3", "sapo", "gspo"],
)
def test_policy(name, config, given, common, tokenizer):
    network, their = policy_loss(common, tokenizer, **config)
    inputs = {"old_logprobs": OLD, "advantages": per_token(ADVANTAGES), **reference_inputs()}
    same(network, ours(network, name, inputs, length=11, **given), their)


# ----------------------------------------------------------------------------------------------------- divergences


@pytest.mark.parametrize(
    ("name", "beta", "given"),
    [("forward_kl", 0.0, {}), ("reverse_kl", 1.0, {}), ("jsd", 0.1, {"beta": 0.1}), ("jsd", 0.8, {"beta": 0.8})],
)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_divergences(name, beta, given, tau):
    """TRL reaches the named KLs through beta 0 and 1; ours have names."""
    from trl.experimental.gkd import GKDTrainer

    network, teacher = model(0), scored(model(1))[0].detach()
    labels = IDS[:, PROMPT:].masked_fill(~LIVE, -100)
    their = GKDTrainer.generalized_jsd_loss(scored(network)[0], teacher, labels=labels, beta=beta, temperature=tau)
    same(network, ours(network, name, {"teacher_logits": teacher}, kd_temperature=tau, **given), their)


def test_tail_bucket():
    """TRL takes the tail as 1 - sum of a server's top-k answer; ours sums the rest of the logits."""
    from trl.experimental.server_distillation import server_distillation_trainer as peer

    network, teacher = model(0), scored(model(1))[0].detach()
    q = teacher.log_softmax(-1)
    top, ids = q.topk(5)
    student_top = scored(network)[0].log_softmax(-1).gather(2, ids)
    valid = torch.ones_like(ids, dtype=torch.bool)
    cells = [peer._add_tail_bucket(x, valid)[0] for x in (student_top, top)]
    divergence = functional.kl_div(cells[0], cells[1], reduction="none", log_target=True).sum(-1)
    same(network, ours(network, "forward_kl_topk_tail", {"teacher_logits": teacher}, k=5), divergence[LIVE].mean())
