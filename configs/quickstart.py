"""placeholder, tuned later"""

from lm.config import defaults, source


def get_config():
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    config.data.cleaning.deduplicate = True
    config.data.tokenizer.vocab_size = 4096
    config.eval.compare_with_xz = True
    return config
