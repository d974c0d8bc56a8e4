"""Data: from files to batches, where row i depends on the config and on i alone.

The path of a document, one sub-package per step:

1. reading/    a format (text.py, records.py, ...) finds the files and yields records; a reader makes raw examples of
               them. format.py has the bases of both and the reader of documents, readers.py the others.
2. storing/    splits.py cleans the examples and selects those of the split: all, a subset, a fold, or a side of the
               holdout. token_store.py keeps the ids of documents and pairs in the cache, memory-mapped and
               fingerprinted; example_store.py keeps labelled examples in memory.
3. tokenizing/ a tokenizer turns text into ids, when a store is built.
4. examples/   numbered examples of known size, made on demand: (tokens, targets, weights, types, source).
5. packing/    rows by number: rows.py cuts a stream of tokens into windows or packs examples; prefetch.py works ahead.

Nothing here has an iterator with state: resuming at step s asks for batch s. `lm.data.show` prints what a model sees.
"""
