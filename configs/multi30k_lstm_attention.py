"""Multi30k, English to German, with an LSTM encoder-decoder, with attention (Bahdanau 2015) or without.

    python train.py --config=configs/multi30k_lstm_attention.py:DIR --workdir=runs/multi30k_lstm
    python train.py --config=configs/multi30k_lstm_attention.py:DIR,none --workdir=runs/multi30k_lstm_none
    python eval.py --workdir=runs/multi30k_lstm,runs/multi30k_lstm_none --split=test --num_beams=5
    python -m benchmarks.bleu_by_length --workdir=runs/multi30k_lstm,runs/multi30k_lstm_none --output=bleu.png
    python -m benchmarks.attention_picture --workdir=runs/multi30k_lstm --input=sentences.txt --output=attention.png

DIR is the same as for configs/multi30k_en_de.py, the Transformer that this model is compared with. `DIR,none` drops the
attention, so the decoder sees only the encoder's last states (Sutskever 2014); `DIR,dot` and `DIR,general` select the
attention scores of Luong 2015.
Cost: about an hour on two CPU cores. Measured: BLEU 38.0 on the test split (results/multi30k_lstm_attention.json).
After 600 steps, BLEU is 29.3 with attention and 12.0 without; results/bleu_by_length.png shows BLEU by the length of
the source.
"""

from configs import multi30k_en_de
from lm.config import defaults


def get_config(argument=""):
    directory, _, attention = argument.partition(",")
    config = multi30k_en_de.get_config(directory)
    config.model = defaults().model
    config.model.update(
        architecture="recurrent",
        family="encoder_decoder",
        num_layers=1,
        num_encoder_layers=1,
        d_model=384,
        embedding_width=256,
        source_attention=attention or "additive",
        dropout=0.3,
        init_std=0.0,
        embedding_std=0.05,
    )
    config.optimizer.update(name="adamw", learning_rate=2e-3, warmup_steps=200, weight_decay=0.01)
    config.train.update(batch_size=64, num_steps=2400)
    return config
