"""Training: from recordings and a recipe to a checkpoint, and entropy models for its codes."""
