"""How one Mixture-of-Experts language model is trained, scored, saved and exported."""
