"""Comparisons with the classes that other libraries have for the same purpose, in the same situations.

`comparison` asks both sides and shows what they did, `watching` looks at the model underneath. Of each framework there
are the two sides, and the situations. The scripts beside this package run them.
"""
