"""Liger's fused kernels inside a student's layers: norms and gated MLPs in one pass over memory each."""

from __future__ import annotations

import importlib.util
import sys

import torch
from transformers import PreTrainedModel

from limbeck.errors import ConfigError


def fuse_layers(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its norms and MLPs computed by Liger's Triton kernels; its head and loss stay limbeck's.

    Liger also replaces classes of the architecture's module for models that are loaded later; that is undone, so that the next
    run of this process decides for itself. Rotary embeddings could be replaced for the whole process only and stay as they are.

    Raises:
        ConfigError: no accelerator, Liger is not installed, or it does not know the architecture.
    """
    if not torch.cuda.is_available():
        raise ConfigError("train.liger needs a CUDA device for its kernels, received a CPU. Leave it out.")
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError("train.liger needs Liger's kernels, which are not installed: pip install 'limbeck[liger]'.")
    from liger_kernel.transformers import monkey_patch  # pyright: ignore[reportMissingImports]

    kind = str(model.config.model_type)
    apply = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if apply is None:
        raise ConfigError(
            f"train.liger needs an architecture that Liger knows, received {kind}. Leave it out, or take one of: "
            f"{', '.join(sorted(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN))}."
        )
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        apply(model=model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    finally:
        names.update(before)
    return model
