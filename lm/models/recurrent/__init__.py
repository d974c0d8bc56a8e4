"""Recurrent networks, from the cell up to the whole models.

In the order in which they build on each other: `recurrence` (a cell applied along a row, with its gradient), `cells`
(RNN, LSTM and GRU), `layer` (a stack of layers in one or two directions), `attention` (of a decoder to its source),
`wiring` (language model, encoder and encoder-decoder).
"""
