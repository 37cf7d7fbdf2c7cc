"""Small data sets of different nature, and models trained on them at equal wall time.

`make` writes the sets as folders; `run` trains mmflax's folder recipe and the `peers` on one. Each
of the other modules but `pictures` is a data set.
"""
