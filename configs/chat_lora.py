"""Supervised fine-tuning of a chat model on conversations, with LoRA adapters of rank 8.

    python train.py --config=configs/chat_lora.py:RUN,FILE.jsonl[,TEST.jsonl] --workdir=runs/tuned
    python -m lm.chat --workdir=runs/tuned

RUN is the run directory of a decoder with a chat template, e.g. one that `lm.hf import` has created from a published
model. Training starts from its model and tokenizer. FILE.jsonl has one conversation per line, in the format of OpenAI
or ShareGPT. A tenth of the conversations is held out; those in TEST.jsonl are the test split. Only the tokens of the
answers are learnt. For a model without a chat template, add --config.data.chat_template=plain.

The cost depends on the model; this config has not been run yet at full size. With SmolLM2-135M-Instruct and 360 short
conversations (benchmarks/published/tuned_chat.py), the perplexity of held-out answers falls from 50.0 to 1.22.
"""

from lm.config import defaults, source
from lm.models.presets import preset


def get_config(argument=""):
    run, path, test = (*argument.split(","), "", "")[:3]
    config = defaults()
    config.data.train.talk = source(kind="jsonl", path=path or "conversations.jsonl")
    if test:
        config.data.test.talk = source(kind="jsonl", path=test)
    config.data.tokenizer.update(kind="huggingface", path=f"{run or 'RUN'}/tokenizer/tokenizer.json")
    config.data.sequence_length = 1024
    config.objective.name = "chat"
    if run:
        config.init_from = run
        config.model.update(preset(run))
    config.model.update(lora_rank=8, lora_targets=("query", "key", "value", "out", "up", "gate", "down"))
    config.optimizer.update(learning_rate=2e-4, schedule="cosine", weight_decay=0.0)
    config.train.update(batch_size=16, num_epochs=3.0)
    config.eval.update(every_steps=50, prompts=())
    config.checkpoint.every_steps = 50
    return config
