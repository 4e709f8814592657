"""The training loop and what it needs: models, data, optimizer, checkpoints, record."""
