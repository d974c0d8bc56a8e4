"""placeholder, tuned later"""

from lm.config import defaults, source


def get_config():
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    return config
