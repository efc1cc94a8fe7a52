"""Studies: ablations, scaling laws, long contexts, what goes on inside a model, what alignment has changed.

Python puts the folder of a script that it runs on its path, so that recipes import these modules as `studies.NAME`.
"""
