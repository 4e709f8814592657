"""A model and rollouts looked at before anything is trained: what will work, what will not, and what to do about it."""
