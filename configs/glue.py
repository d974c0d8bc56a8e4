"""Fine-tuning on a task of GLUE (Wang 2019), from TFDS; the argument names the task.

    python train.py --config=configs/glue.py:rte --workdir=runs/rte --config.init_from=runs/bert_mlm --seeds=0,1,2

The argument is cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli. The test labels are not public, so the validation
split is reported, as in most papers (for MNLI, both the matched and the mismatched split). The metric of the task
selects the best checkpoint. The model is the same as in bert_mlm. This config has not been run yet.
"""

from configs import bert_mlm
from lm.config import defaults, source
from lm.errors import UserError

# Two text fields, names of labels 0, 1, ... (none if labels are numbers), metric, number of training examples.
TASKS = {
    "cola": ("sentence", "", ("unacceptable", "acceptable"), "mcc", 8_551),
    "sst2": ("sentence", "", ("negative", "positive"), "accuracy", 67_349),
    "mrpc": ("sentence1", "sentence2", ("not_equivalent", "equivalent"), "f1_macro", 3_668),
    "qqp": ("question1", "question2", ("not_duplicate", "duplicate"), "accuracy", 363_849),
    "stsb": ("sentence1", "sentence2", (), "spearman", 5_749),
    "mnli": ("premise", "hypothesis", ("entailment", "neutral", "contradiction"), "accuracy", 392_702),
    "qnli": ("question", "sentence", ("entailment", "not_entailment"), "accuracy", 104_743),
    "rte": ("sentence1", "sentence2", ("entailment", "not_entailment"), "accuracy", 2_490),
    "wnli": ("sentence1", "sentence2", ("not_entailment", "entailment"), "accuracy", 635),
}
EPOCHS, BATCH_SIZE = 3, 32


def get_config(task="rte"):
    if task not in TASKS:
        raise UserError(f"configs/glue.py:{task}: no such task; choose from {', '.join(TASKS)}.")
    field, pair_field, labels, metric, examples = TASKS[task]
    config = defaults()

    def part(split):
        return source(
            kind="tfds",
            path=f"glue/{task}",
            split=split,
            field=field,
            pair_field=pair_field,
            label_field="label",
            label_names=labels,
        )

    config.data.train[task] = part("train")
    if task == "mnli":
        config.data.valid.matched = part("validation_matched")
        config.data.valid.mismatched = part("validation_mismatched")
    else:
        config.data.valid[task] = part("validation")
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=30500, extra_ids=1)
    config.data.sequence_length = 128
    config.objective.name = "classification" if labels else "regression"
    config.model = bert_mlm.get_config().model
    config.model.max_length = 512
    # On average, a row of 128 tokens holds about two examples.
    steps = max(100, EPOCHS * examples // BATCH_SIZE // 2)
    config.optimizer.update(
        name="adamw",
        learning_rate=3e-5,
        schedule="linear",
        warmup_steps=steps // 10,
        final_fraction=0.0,
        weight_decay=0.01,
        b2=0.999,
    )
    config.train.update(batch_size=BATCH_SIZE, num_steps=steps)
    config.eval.update(every_steps=max(50, steps // 10), bootstrap=1000)
    config.checkpoint.update(every_steps=max(50, steps // 10), best_metric=f"valid/{metric}")
    return config
