"""One forward pass: rows in, log-probs of their response tokens out, aligned to the targets.

Only predicting positions of scored tokens reach the head; prompt and padding never meet the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from limbeck.batches import align
from limbeck.batches.packing import fit, pack
from limbeck.batches.whole import Whole, whole_scores
from limbeck.errors import ModelError
from limbeck.heads import Head, score_tokens
from limbeck.types import TokenBatch

PROBE_TOLERANCE = 1e-3  # nats, fp32
PACKING_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the states' norm; 1e-2 in half precision


class Scored(NamedTuple):
    """What a forward pass answers at (batch, time), 0 outside the mask.

    Attributes:
        logprobs: of the targets, nats; with gradient unless ``values`` has it.
        entropy: of the student's next-token distribution, nats; likewise.
        values: of an objective of whole distributions, as ``evaluate`` returns them, with gradient; else None.
        metrics: its metrics, without gradient.
    """

    logprobs: Float[Tensor, "batch time"]
    entropy: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"] | None = None
    metrics: dict[str, Tensor] = {}  # noqa: RUF012 - a default that nobody writes to


class Student(nn.Module):
    """A causal language model that answers with token scores instead of logits.

    Args:
        model: with or without an adapter.
        packing: compute rows side by side instead of padded, with the same results. Saves what padding wastes: 1.9 times
            as fast at 52 % padding, no difference at 6 % (benchmarks/packing.py).

    Raises:
        ModelError: packed rows of this model would see each other.
    """

    def __init__(self, model: nn.Module, *, packing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.packing = packing
        if packing:
            check_packing(model)

    def forward(self, batch: TokenBatch, whole: Whole | None = None) -> Scored:
        """Log-prob and entropy of every scored token of a batch on the model's own device.

        With ``whole`` also the values of an objective that reads logits: the head's weight may exist only in here.
        """
        causal = unwrapped(self.model)
        hidden = hidden_states(self.model, batch.ids, batch.lengths, packing=self.packing)
        mask = batch.mask
        picked, targets = _for_head(align.predictors(hidden)[mask]), align.targets(batch.ids)[mask]
        if whole is None:
            flat = score_tokens(picked, head_of(causal), targets)
            return Scored(_spread(flat.logprobs, mask), _spread(flat.entropy, mask))
        found = whole_scores(whole, picked, head_of(causal), targets, batch.inputs, mask)
        return Scored(
            logprobs=_spread(found.logprobs, mask),
            entropy=_spread(found.entropy, mask),
            values=_spread(found.values, mask),
            metrics={name: _spread(metric, mask) for name, metric in found.metrics.items()},
        )


def _spread(flat: Float[Tensor, " tokens"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    return torch.zeros(mask.shape, dtype=flat.dtype, device=mask.device).masked_scatter(mask, flat)


def _for_head(hidden: Float[Tensor, "tokens size"]) -> Float[Tensor, "tokens size"]:
    """In autocast's type where it is on, as a linear head there would read them; a final norm often answers in fp32."""
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def unwrapped(model: nn.Module) -> nn.Module:
    """The causal language model inside an adapter wrapper, adapters still in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def hidden_states(
    model: nn.Module, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], *, packing: bool = False
) -> Float[Tensor, "batch length hidden"]:
    """Final hidden states of right-padded rows; beyond a row's length they mean nothing."""
    if not packing:
        return _decode(model, ids, lengths).last_hidden_state
    causal = unwrapped(model)
    packed = pack(ids, lengths, width=int(lengths.sum()) if _in_one_bin(causal) else None)
    decoder = causal.get_decoder()  # type: ignore[operator]
    out = decoder(input_ids=packed.ids, position_ids=packed.positions, attention_mask=None, use_cache=False)
    return out.last_hidden_state.flatten(0, 1)[packed.places]


def computed_cells(model: nn.Module, sizes: Sequence[int], *, packing: bool = False) -> int:
    """How many tokens ``hidden_states`` of rows of these sizes computes, padding or what bins have left over included."""
    if not packing:
        return max(sizes) * len(sizes)
    width = sum(sizes) if _in_one_bin(unwrapped(model)) else max(sizes)
    return width * fit(sizes, width)[1]


def _in_one_bin(causal: nn.Module) -> bool:
    return "flash" in attention_of(causal)  # takes boundaries from one long row and computes nothing across them


def attention_of(causal: nn.Module) -> str:
    """Name of the attention implementation."""
    config: Any = causal.config
    return str(config._attn_implementation)


def layer_states(
    model: nn.Module, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch length hidden"], ...]:
    """Hidden states of every layer, embeddings first."""
    return _decode(model, ids, lengths, output_hidden_states=True).hidden_states


def _decode(model: nn.Module, ids: Tensor, lengths: Tensor, **settings: bool) -> Any:
    attention = (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
    decoder = unwrapped(model).get_decoder()  # type: ignore[operator]
    return decoder(input_ids=ids, attention_mask=attention, use_cache=False, **settings)


def head_of(causal: nn.Module) -> Head:
    """The output head with the scale and softcap that its architecture's config declares."""
    module = causal.get_output_embeddings()  # type: ignore[operator]
    if module is None or not hasattr(module, "weight"):
        raise ModelError(
            f"a causal language model with a linear output head is needed, received {type(causal).__name__}. "
            "Load it with AutoModelForCausalLM."
        )
    config = causal.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    return Head(weight=module.weight, bias=getattr(module, "bias", None), scale=scale, softcap=softcap)


@torch.no_grad()
def check_head(model: nn.Module, ids: Int[Tensor, " length"]) -> None:
    """Compare the chunked head with the model's own logits on a few tokens, so that no architecture is misread.

    Raises:
        ModelError: they differ by more than rounding; the architecture does something between decoder and logits.
    """
    causal = unwrapped(model)
    ids = ids.to(next(model.parameters()).device)
    row = ids[None]
    own = causal(input_ids=row).logits[0, :-1].float().log_softmax(-1)
    hidden = hidden_states(model, row, torch.tensor([len(ids)], device=ids.device))
    ours = score_tokens(align.predictors(hidden)[0], head_of(causal), ids[1:]).logprobs
    gap = (own.gather(1, ids[1:, None])[:, 0] - ours).abs().max().item()
    if not gap <= PROBE_TOLERANCE:
        raise ModelError(
            f"log-probs from hidden states must equal the model's own within {PROBE_TOLERANCE} nats, received a gap of "
            f"{gap:.2g}. {type(causal).__name__} transforms its logits in a way that is not supported."
        )


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Compare packed rows with padded ones, so that no architecture's rows leak into each other unseen.

    Raises:
        ModelError: they differ by more than rounding, or the model cannot be asked for packed rows at all.
    """
    causal, first = unwrapped(model), next(model.parameters())
    name, attention, device = type(causal).__name__, attention_of(causal), first.device
    if first.is_meta:
        return  # no weights to ask yet
    remedy = "Turn packing off for this model, or load it with sdpa, eager or flash attention."
    tolerance = PACKING_TOLERANCES.get(first.dtype, 1e-2)
    training = {module: module.training for module in model.modules()}
    model.eval()
    ids, lengths = torch.arange(21, device=device).reshape(3, 7) % 13, torch.tensor([7, 4, 3], device=device)
    inside = torch.arange(7, device=device)[None] < lengths[:, None]
    try:
        padded, packed = (hidden_states(model, ids, lengths, packing=way)[inside].float() for way in (False, True))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"packing must be supported by {name} with {attention} attention: {error}. {remedy}"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    gap = ((padded - packed).norm() / padded.norm()).item()
    if not gap <= tolerance:
        raise ModelError(
            f"packed rows must have the states of padded ones within {tolerance:g}, received a gap of {gap:.2g}: "
            f"in {name} with {attention} attention rows see each other. {remedy}"
        )
