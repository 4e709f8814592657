"""abacus: worded arithmetic, a tiny Qwen3 base and teacher; everything limbeck does, without a download."""
