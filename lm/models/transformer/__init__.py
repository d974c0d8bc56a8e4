"""The Transformer: decoder-only, encoder-only and encoder-decoder models built from the same block.

Read the modules in this order: `positions`, `attention`, `stack` (the MLP, the block and the stack of N blocks),
`tower` (all layers between the token embedding and the head), `wiring` (the three families).
"""
