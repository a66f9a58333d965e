"""How the two small models of `adafuse_core.small_models` were made. Part of the repository, not of the package.

`curriculum` is the text they learn from, `recipe` what they are before training, `train` and `evaluate` are the two
scripts, and `demo_questions` freezes the questions that `adafuse demo` asks. Tests and benchmarks ask the curriculum's
held-out questions too.
"""
