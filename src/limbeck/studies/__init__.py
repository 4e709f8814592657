"""A study: arms x seeds over one rollout set, in steps that are found again when they are finished."""
