"""Simple models that are fitted to the training split and scored like the run (`eval.py --baselines`).

Each task lists its baselines (`Task.baselines`). The models come from scikit-learn, python-crfsuite and xz, or are
closed forms of counts. All of them are deterministic, and the amount of data to which they are fitted is bounded.
"""
