"""Recurrent networks, from cells up to complete models.

Each module builds on the ones before it: `recurrence` (a cell applied along a row, with its gradient), `cells` (RNN,
LSTM and GRU), `layer` (a stack of layers in one or two directions), `attention` (of a decoder to its source) and
`wiring` (language model, encoder and encoder-decoder).
"""
