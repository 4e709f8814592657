"""How many tokens a micro-batch has where nobody said: what the layers keep of one for backward is counted, not guessed."""

from __future__ import annotations

from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from limbeck.batches.forward import hidden_states
from limbeck.config import TrainConfig

KEPT_BYTES = 256 << 20  # what the layers of one micro-batch may keep until backward on a CPU
DEVICE_SHARE = 4  # on an accelerator, one part in so many of its memory
DEVICE_TOKENS = 32_768  # and no more tokens than fill it with work
PROBE_TOKENS = 8  # a row


def micro_batch_tokens(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> int:
    """Padded tokens a micro-batch, the same on every process.

    As set; else as many as keep ``KEPT_BYTES`` on a CPU, where a product of a few hundred rows is as fast as a larger one, and
    a share of the whole memory on an accelerator, which small batches leave waiting.

    Args:
        model: what is trained, before processes share or shard it; only the main process runs it.
        config: the settings.
        accelerator: this process among the others.
    """
    if config.token_budget is not None:
        return config.token_budget
    if accelerator.device.type == "cuda":
        room, most = torch.cuda.get_device_properties(accelerator.device).total_memory // DEVICE_SHARE, DEVICE_TOKENS
    else:
        room, most = KEPT_BYTES, config.pass_tokens
    found = [kept_per_token(model) if accelerator.is_main_process else 0]
    broadcast_object_list(found)
    return max(1, min(most, room // max(1, found[0])))


def kept_per_token(model: nn.Module) -> int:
    """Bytes that a pass through the decoder keeps of every token until backward.

    The difference of two short rows and one, so what is kept once a pass does not count. Attention that keeps a (length, length)
    matrix keeps more of long rows than this says; the kernels that are chosen by default do not. Layers that are run again in
    backward keep next to nothing.
    """
    one, two = (_kept(model, rows) for rows in (1, 2))
    return -(-(two - one) // PROBE_TOKENS)


def _kept(model: nn.Module, rows: int) -> int:
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # of several views, once
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(model.parameters()).device
    ids = torch.arange(rows * PROBE_TOKENS, device=device).reshape(rows, PROBE_TOKENS) % 13
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        states = hidden_states(model, ids, torch.full((rows,), PROBE_TOKENS, device=device))
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(model.parameters(), model.buffers())}
    kept = sum(size for place, size in sizes.items() if place not in own)
    del states  # held until here: no address was used twice
    return kept
