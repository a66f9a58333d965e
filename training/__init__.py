"""Trains the two models of `adafuse_core.small_models`. Part of the repository, not of the package.

`curriculum` generates the training data and held-out questions, which tests and benchmarks use too. `recipe` defines
tokenizers, templates and architectures. `train` and `evaluate` are scripts, and `demo_questions` writes the questions
of `adafuse demo`.
"""
