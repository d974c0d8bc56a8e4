"""Recurrent networks, from cells up to complete models.

The modules, each of which builds on the ones before it: `recurrence` (a cell applied along a row, with its gradient),
`cells` (RNN, LSTM and GRU), `layer` (a stack of layers in one or two directions), `attention` (of a decoder to its
source), `wiring` (language model, encoder and encoder-decoder).
"""
