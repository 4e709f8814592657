"""A checkpoint and problems in, score tables, path losses and hidden states out."""
