"""What may be done with a delta without ever forming it: name it, combine it, check it against another.

A LoRA update stays ``left @ right`` throughout (see :class:`limbeck.types.LowRank`). Reading an adapter folder is
in :mod:`limbeck.geometry.adapters`; nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import ConfigError, DegenerateError, ModelError, ProvenanceError
from limbeck.types import Delta, LowRank

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d{1,9})(?:\.|$)")
_DIGEST = " sha256:"


class Place(NamedTuple):
    """Where in the network a module sits: block index (-1 outside any block) and last name."""

    layer: int
    kind: str


def place(module: str) -> Place:
    """Block index and kind of a module, read off its name.

    >>> place("model.layers.11.self_attn.q_proj")
    Place(layer=11, kind='q_proj')
    >>> place("transformer.h.3.attn.c_attn"), place("lm_head")
    (Place(layer=3, kind='c_attn'), Place(layer=-1, kind='lm_head'))
    """
    found = _LAYER.search(module)
    return Place(layer=int(found.group(1)) if found else -1, kind=module.rsplit(".", 1)[-1])


def base_identity(name: str, digest: str) -> str:
    """The ``base`` field of a delta: the model's name, and the digest of its weights where one is known.

    >>> base_identity("Qwen/Qwen3-4B", "")
    'Qwen/Qwen3-4B'
    """
    return f"{name}{_DIGEST}{digest}" if digest else name


def same_base(one: str, other: str) -> bool:
    """Whether two ``base`` fields mean the same weights: digests decide where both are known, else names.

    >>> same_base(base_identity("/a/base", "3f9a"), base_identity("/b/base", "3f9a"))
    True
    >>> same_base("Qwen/Qwen3-4B", "Qwen/Qwen3-8B")
    False
    """
    name_1, _, digest_1 = one.partition(_DIGEST)
    name_2, _, digest_2 = other.partition(_DIGEST)
    return digest_1 == digest_2 if digest_1 and digest_2 else name_1 == name_2


def init_digest(initial: Mapping[str, Tensor]) -> str:
    """Identity of the initial A factors that arms must share: sha256 over names and fp32 bytes, sorted by name.

    Args:
        initial: module name to its A factor before the first step; rounded to fp32 here.

    Returns:
        64 hexadecimal digits. Order of the mapping does not matter; one changed bit does.
    """
    digest = hashlib.sha256()
    for name in sorted(initial):
        factor = initial[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}\0{tuple(factor.shape)}\0".encode())
        digest.update(factor.numpy().tobytes())
    return digest.hexdigest()


def same_init(x: Delta, y: Delta) -> bool | None:
    """Whether two arms started from the same factors; None when either does not say."""
    if not x.init_digest or not y.init_digest:
        return None
    return x.init_digest == y.init_digest


def check_comparable(deltas: Sequence[Delta]) -> None:
    """Refuse arms whose weight updates cannot be compared module by module. Ranks may differ.

    Raises:
        ConfigError: two arms share a name.
        DegenerateError: there is no arm, or an arm without a module.
        ProvenanceError: arms start from different base weights.
        ModelError: arms adapt different modules, or modules of different shapes; the message names them.
    """
    if not deltas or not all(d.modules for d in deltas):
        raise DegenerateError(
            f"a measurement needs at least one arm with at least one adapted module, received {len(deltas)} arms, "
            f"{sum(not d.modules for d in deltas)} of them empty. Point at folders with adapter_model.safetensors."
        )
    names = [d.name for d in deltas]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"arms need distinct names, received {twice[0]!r} twice. Pass a name for each folder.")
    first = deltas[0]
    for other in deltas[1:]:
        if not same_base(first.base, other.base):
            raise ProvenanceError(
                f'arms "{first.name}" and "{other.name}" must share a base, received {first.base!r} and '
                f"{other.base!r}. Updates to different weights have no common direction: measure them apart."
            )
        _check_modules(first, other)


def _check_modules(x: Delta, y: Delta) -> None:
    both = f'arms "{x.name}" and "{y.name}" must adapt the same modules'
    only_x, only_y = sorted(set(x.modules) - set(y.modules)), sorted(set(y.modules) - set(x.modules))
    if only_x or only_y:
        name, owner = (only_x[0], x.name) if only_x else (only_y[0], y.name)
        raise ModelError(
            f'{both}, received {len(only_x)} modules that only "{x.name}" has and {len(only_y)} that only "{y.name}" '
            f'has ("{name}" is only in "{owner}"). Train with equal target_modules, or measure each arm alone.'
        )
    for name, factors in x.modules.items():
        if factors.shape != y.modules[name].shape:
            raise ModelError(
                f'{both} with equal shapes, received {factors.shape} and {y.modules[name].shape} for "{name}". '
                "These adapters belong to models of different sizes."
            )


def combine(weights: Sequence[float | int], deltas: Sequence[Delta], *, name: str) -> Delta:
    """The exact linear combination ``sum(w * delta)``, by concatenating ranks.

    ``left = [w0*left0, w1*left1, ...]``, ``right = [right0; right1; ...]``; no product is formed and no factor is
    averaged (averaging factors is a different curve). Rank is the sum of ranks. The initial factors of the result
    are known only if all parts share them.

    Raises:
        ConfigError: as many weights as deltas are needed.
    """
    if len(weights) != len(deltas):
        raise ConfigError(
            f"combine needs one weight per delta, received {len(weights)} weights for {len(deltas)} deltas."
        )
    for other in deltas[1:]:
        check_comparable([deltas[0], _renamed(other, f"{other.name}'" if other.name == deltas[0].name else other.name)])
    modules = {
        module: LowRank(
            torch.cat([(d.modules[module].left * w).float() for w, d in zip(weights, deltas, strict=True)], dim=1),
            torch.cat([d.modules[module].right for d in deltas], dim=0),
        )
        for module in deltas[0].modules
    }
    inits = {d.init_digest for d in deltas}
    return Delta(name=name, base=deltas[0].base, init_digest=inits.pop() if len(inits) == 1 else "", modules=modules)


def _renamed(delta: Delta, name: str) -> Delta:
    return Delta(name=name, base=delta.base, init_digest=delta.init_digest, modules=delta.modules)
