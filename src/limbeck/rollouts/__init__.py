"""Text out, once, for every method: sampled or imported, stored with a digest, selected on the record."""
