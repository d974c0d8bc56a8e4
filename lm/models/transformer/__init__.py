"""The Transformer: decoder-only, encoder-only and encoder-decoder models built from one block.

Read the modules in this order: `positions`, `attention`, `stack` (the MLP, the block, and N of them), `tower` (from
embedded tokens to the output of the last layer), `wiring` (the three families).
"""
