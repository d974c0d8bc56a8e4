"""The Transformer: decoder-only, encoder-only and encoder-decoder from one block.

Read in this order: `positions`, `attention`, `stack` (the MLP, the block, and N of them), `tower` (from embedded tokens
to the output of the last layer), `wiring` (the three families).
"""
