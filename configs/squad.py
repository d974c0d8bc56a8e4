"""Fine-tuning on SQuAD 1.1, from TFDS.

    python train.py --config=configs/squad.py --workdir=runs/squad --config.init_from=runs/bert_mlm

Trains for two epochs, as in Devlin 2019. The model is the same as in bert_mlm; windows have 384 tokens and overlap by
128. Results are for the validation split, because the test split is not public. This config has not been run yet; BERT
(base) reaches an F1 of 88.5.
"""

from configs import bert_mlm
from lm.config import defaults, source


def get_config():
    config = defaults()
    config.data.train.squad = source(kind="tfds", path="squad/v1.1", split="train")
    config.data.valid.squad = source(kind="tfds", path="squad/v1.1", split="validation")
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=30500, extra_ids=1)
    config.data.update(sequence_length=384, context_overlap=128)
    config.objective.name = "span_qa"
    config.model = bert_mlm.get_config().model
    config.model.max_length = 512
    config.optimizer.update(
        name="adamw",
        learning_rate=5e-5,
        schedule="linear",
        warmup_steps=500,
        final_fraction=0.0,
        weight_decay=0.01,
        b2=0.999,
    )
    config.train.update(batch_size=32, num_steps=5_500)
    config.eval.update(every_steps=500, max_rows=2048, bootstrap=1000)
    config.checkpoint.update(every_steps=500, best_metric="valid/f1")
    return config
