"""Settings of recurrent models."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class RecurrentSettings:
    cell: str = option("lstm", registry="lm.models.recurrent.cells.CELLS", affects="shapes")
    """Recurrent cell: 'rnn' (tanh, Elman 1990), 'lstm' (Hochreiter 1997) or 'gru' (Cho 2014)."""
    cell_norm: bool = option(False, parameters=("input_norm", "recurrent_norm", "state_norm"))
    """Normalise the projections of the input and of the previous output, and the cell state of an LSTM (Ba 2016)."""
    recurrent_dropout: float = option(0.0, minimum=0.0, maximum=0.9, affects="updates")
    """Dropout rate of the recurrent connections. See recurrent_dropout_of."""
    recurrent_dropout_of: str = option(
        "weights", choices=("weights", "outputs"), affects="updates", needs=("recurrent_dropout",)
    )
    """Target of recurrent_dropout: 'weights' drops entries of the recurrent matrices (Merity 2018), and 'outputs'
    drops features of the previous output. The same features are dropped at all tokens of a row (Gal 2016)."""
    locked_dropout: bool = option(False, affects="updates", needs=("dropout",))
    """Drop the same features at all tokens of a row instead of choosing features anew at each token (Gal 2016)."""
    source_attention: str = option(
        "additive",
        registry="lm.models.recurrent.attention.SCORES",
        parameters=("source_attention",),
        needs=("family=encoder_decoder",),
    )
    """How a decoder attends to its source: 'none' (Sutskever 2014), or attention with the score 'additive' (Bahdanau
    2015), 'dot' or 'general' (Luong 2015)."""
    output_penalty: float = option(0.0, minimum=0.0, affects="updates", needs=("family=decoder",))
    """Weight of the penalty on the mean square of the last layer's output, after dropout (activation regularisation,
    Merity 2018; for objective.name='causal' only)."""
    change_penalty: float = option(0.0, minimum=0.0, affects="updates", needs=("family=decoder",))
    """Weight of the penalty on the mean squared change of the last layer's output from token to token, before dropout
    (temporal activation regularisation, Merity 2018; for objective.name='causal' only)."""
