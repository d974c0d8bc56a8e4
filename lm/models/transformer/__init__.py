"""The Transformer: decoder-only, encoder-only and encoder-decoder models built from one block.

Read the modules in this order: `positions`, `attention`, `stack` (the MLP, the block and the stack of N blocks),
`tower` (from embedded tokens to the output of the last layer), `wiring` (the three families).
"""
