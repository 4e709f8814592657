"""Rows to tensors: alignment, micro-batches, one forward pass, scores of frozen models."""
