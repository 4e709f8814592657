"""How surely one arm is better: intervals, paired tests, multiplicity, and what could have been called at all."""
