"""The Transformer: decoder-only, encoder-only and encoder-decoder from one block.

Read in this order: `positions`, `attention`, `mlp`, `stack` (the block, and N of them), `tower` (embedded tokens to the
output of the last layer), `wiring` (the three families), `model` (what the rest of the code asks of them).
"""
