"""Finished levels as others take them: a model card, and a version in MLflow's registry."""
