"""Adapters and checkpoints."""

from __future__ import annotations

import json

from tests.hostile.making import (
    DEEP,
    FACTORS,
    LORA,
    NUMBERS,
    WEIGHT,
    A,
    B,
    adapter,
    checkpoint,
    entry,
    files,
    indexed,
    linked,
    named,
    pipe,
)
from tests.hostile.verbs import Case

WEIGHTS = [
    Case(
        "an index with a name of 300 characters",
        "measure",
        indexed({"x": "x" * 300}),
        "must hold a weight_map of tensor names to files beside it",
    ),
    Case("a header longer than the file", "measure", adapter(size=10**12), "must be a complete safetensors file"),
    Case("a header that is no JSON", "measure", adapter(b"{no"), "must be a complete safetensors file"),
    Case("a header 100,000 deep", "measure", adapter(DEEP.encode()), "must be a complete safetensors file"),
    Case(
        "tensors that overlap",
        "measure",
        adapter({A: FACTORS[A], B: entry([4, 2], 16, 48)}, NUMBERS[:48]),
        "must be a complete safetensors file",
    ),
    Case(
        "a tensor outside of the file",
        "measure",
        adapter({A: FACTORS[A], B: entry([4, 2], 32, 2**40)}),
        "must be a complete safetensors file",
    ),
    Case(
        "a shape that is not its bytes",
        "measure",
        adapter({A: entry([2**40, 2**40], 0, 32), B: FACTORS[B]}),
        "must be a complete safetensors file",
    ),
    Case(
        "a shape below zero",
        "measure",
        adapter({A: entry([-2, 4], 0, 32), B: FACTORS[B]}),
        "must be a complete safetensors file",
    ),
    Case(
        "a factor of three axes",
        "measure",
        adapter({A: entry([1, 2, 4], 0, 32), B: FACTORS[B]}),
        "lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received (1, 2, 4)",
    ),
    Case(
        "factors of two ranks",
        "measure",
        adapter({A: FACTORS[A], B: entry([2, 4], 32, 64)}),
        "lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received (2, 4)",
    ),
    Case(
        "a rank of zero",
        "measure",
        adapter({A: entry([0, 4], 0, 0), B: entry([4, 0], 0, 0)}, b"", r=0),
        "lora_A must be (rank, in) and lora_B (out, rank) with rank >= 1, received (0, 4)",
    ),
    Case(
        "a type that is none",
        "measure",
        adapter({A: entry([2, 4], 0, 32, "F1"), B: FACTORS[B]}),
        "must be a complete safetensors file",
    ),
    Case(
        "NaN among the weights",
        "measure",
        adapter(data=b"\xff" * 64),
        "weights must be finite, received 8 NaN or infinite entries in",
    ),
    Case(
        "a factor twice in the header",
        "measure",
        adapter((json.dumps({A: FACTORS[A]})[:-1] + ", " + json.dumps(FACTORS)[1:]).encode()),
    ),
    Case(
        "a rank of 10^9",
        "measure",
        adapter(r=10**9),
        "the factors' rank must be the configured one = 1e+09, received 2.",
    ),
    Case("a rank of 400 digits", "measure", adapter(r=10**400), "r must be a finite number"),
    Case(
        "a scale of infinity",
        "measure",
        adapter(text=json.dumps(LORA)[:-1] + ', "alpha_pattern": {"q_proj": 1e999}}'),
        "lora_alpha must be a finite number, received inf",
    ),
    Case("a scale that leaves 32 bits", "measure", adapter(lora_alpha=1e308), "the scaled update must be finite"),
    Case(
        "half of a surrogate pair in a pattern",
        "measure",
        adapter(alpha_pattern={"\ud800": 4}),
        "alpha_pattern must hold regular expressions, received one with",
    ),  # fmt: skip
    Case("a pattern that takes for ever to match", "measure", named("a" * 60 + "b", rank_pattern={"(a+)+$": 2})),
    Case(
        "a pattern that is no expression",
        "measure",
        adapter(rank_pattern={"(": 2}),
        "rank_pattern must hold regular expressions, received one with",
    ),
    Case("a layer of 30 digits", "measure", named(f"model.layers.{'9' * 30}.q_proj")),
    Case("a layer of 5,000 digits", "measure", named(f"model.layers.{'9' * 5000}.q_proj")),
    Case("settings 100,000 deep", "measure", adapter(text=DEEP), "nesting too deep to read"),
    Case("a setting twice", "measure", adapter(text='{"r": 2, "r": 4, "peft_type": "LORA"}'), "stands twice"),
    Case("settings in UTF-16", "measure", adapter(text="\ud800"), "must be readable JSON"),
    Case(
        "a pickle in place of weights",
        "measure",
        files(adapter_config__json=json.dumps(LORA), adapter_model__bin=b"\x80\x04cos\nsystem\n."),
        "is a pickle and is never opened",
    ),
    Case(
        "weights that are a pipe",
        "measure",
        pipe(adapter(), "adapter_model.safetensors"),
        "must hold adapter_model.safetensors, received none",
    ),
    Case(
        "a digest that is a list",
        "measure",
        lambda folder: files(limbeck__json='{"base_digest": [1]}')(adapter()(folder)),
        "limbeck.json: base_digest must be a string, received list",
    ),
    Case(
        "an index with an absolute path",
        "measure",
        indexed({"x": "/etc/passwd"}),
        "must hold a weight_map of tensor names to files beside it, received another content",
    ),
    Case(
        "an index that leaves the folder",
        "measure",
        indexed({"x": "../a.safetensors"}),
        "must hold a weight_map of tensor names to files beside it, received another content",
    ),
    Case(
        "an index that names ..",
        "measure",
        indexed({"x": ".."}),
        "names .., which must be beside it and is not there: 1 tensors are missing, 'x' among them",
    ),
    Case(
        "an index with NUL in a name",
        "measure",
        indexed({"x": "a\0.safetensors"}),
        "which must be beside it and is not there",
    ),
    Case(
        "an index that names a shard that is not there",
        "measure",
        indexed({"x": "b.safetensors"}),
        "names b.safetensors, which must be beside it and is not there: 1 tensors are missing, 'x' among them",
    ),
    Case(
        "an index that is a list",
        "measure",
        indexed([1]),
        "must hold a weight_map of tensor names to files beside it, received another content",
    ),
    Case("an index 100,000 deep", "measure", indexed({}, text=DEEP), "nesting too deep to read"),
    Case(
        "an index that names a file of another kind",
        "measure",
        indexed({"x": "config.json"}),
        "must be a complete safetensors file, received one that is truncated or damaged",
    ),
    Case(
        "a shard that is an endless device",
        "measure",
        linked(indexed({"x": "b.safetensors"}), "b.safetensors", "/dev/zero"),
        "names b.safetensors, which must be beside it and is not there: 1 tensors are missing, 'x' among them",
    ),
    Case(
        "tensors outside of the file",
        "measure",
        checkpoint({"model.norm.weight": entry([4], 0, 2**50)}),
        "must be a complete safetensors file, received one that is truncated or damaged",
    ),
    Case(
        "a header of 90 MB of spaces",
        "measure",
        checkpoint(b"{" + b" " * 90_000_000 + b"}"),
        "must be a complete safetensors file, received one that is truncated or damaged",
    ),
    Case(
        "heads of 10^9 in a fused matrix",
        "measure",
        checkpoint(
            {"model.qkv_proj.weight": entry([2, 2], 0, 16)},
            config='{"num_attention_heads": 1000000000, "hidden_size": 1}',
        ),
    ),
    Case(
        "a million experts without entries",
        "measure",
        checkpoint({"model.experts.up.weight": entry([1_000_000, 0, 4], 0, 0), **WEIGHT}),
    ),
    Case(
        "a pickle in place of a model",
        "measure",
        files(config__json="{}", pytorch_model__bin=b"\x80\x04cos\nsystem\n."),
        "is a pickle and is never opened",
    ),
]
