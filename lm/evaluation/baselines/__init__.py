"""Simple models that are fitted to the training split and scored like the trained model (`eval.py --baselines`).

Each task lists its baselines (`Task.baselines`). The models come from scikit-learn, python-crfsuite and xz, or are
closed-form functions of counts. All of them are deterministic and are fitted to a bounded amount of data.
"""
