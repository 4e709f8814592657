"""Every objective as a pure function of tensors, in one table."""
