"""Comparisons with classes of other libraries for the same purpose, in the same situations.

`comparison` runs the situations and shows the outcomes; `watching` observes and disturbs the underlying model. For each
framework there is a module with the two sides and one with the situations.
"""
