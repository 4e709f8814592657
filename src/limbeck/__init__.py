"""limbeck: reasoning distillation on identical rollouts, with the geometry and the statistics to judge it."""

__version__ = "0.1.0"
