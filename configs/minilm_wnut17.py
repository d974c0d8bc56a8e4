"""Emerging named entities, as in ner_wnut17, with a published encoder (MiniLM, 22 M parameters).

    python -m lm.hf import --model=DIR_OF_MINILM --workdir=runs/minilm
    python train.py --config=configs/minilm_wnut17.py:DIR,runs/minilm --workdir=runs/minilm_wnut17 --seeds=0,1,2

DIR is the directory of ner_wnut17. Any other imported encoder can take the place of MiniLM.
"""

from configs import ner_wnut17
from configs.minilm_mr import start_from


def get_config(arguments=""):
    directory, _, run = arguments.partition(",")
    config = ner_wnut17.get_config(directory)
    start_from(config, run)
    config.train.num_epochs = 5.0
    return config
