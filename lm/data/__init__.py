"""Data: from files to batches, where row i depends on the config and on i alone.

The path of a document, one sub-package per step:

1. reading/    a format (text.py, records.py, ...) finds the files and yields records; readers.py makes raw examples of
               them, with the help of fields.py; cleaning.py cleans them and drops some, as data.cleaning asks.
2. storing/    splits.py selects the examples of the split: all of them, a subset, a fold, or a side of the holdout.
3. tokenizing/ a tokenizer turns text into ids.
4. storing/    token_store.py keeps the ids of documents and pairs in the cache, memory-mapped and fingerprinted;
               example_store.py keeps labelled examples in memory.
5. examples/   numbered examples of known size, made on demand: (tokens, targets, weights, types, source).
6. packing/    rows by number: windows.py cuts a stream of tokens, rows.py packs examples; prefetch.py works ahead.

Nothing here has an iterator with state: resuming at step s asks for batch s. `lm.data.show` prints what a model sees.
"""
