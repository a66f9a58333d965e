"""Trains the two models of `adafuse_core.small_models`, and other members. Part of the repository, not of the package.

`curriculum` generates the training data and held-out questions, which tests and benchmarks use too. `recipe` defines
tokenizers, templates and architectures. `train` and `evaluate` are scripts, and `demo_questions` writes the questions
of `adafuse demo`. `pairs` has pairs of members for judging rules of fusion, and `lora_experts` trains two adapters of a
real model.
"""
