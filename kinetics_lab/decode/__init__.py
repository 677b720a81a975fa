"""A model decoded under a policy: caches, Hugging Face models, sampling, grading."""
