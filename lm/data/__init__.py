"""The data pipeline, from files to batches; row i depends only on the config and on i.

A document passes through these steps, one sub-package each:

1. reading/    a format (text.py, records.py, ...) finds the files and yields records; a reader turns them into raw
               examples. format.py has the base classes and the document reader; readers.py has the other readers.
2. storing/    splits.py cleans the examples and selects those of the split: all, a subset, a fold, or one side of a
               holdout. token_store.py caches the token ids of documents and pairs, memory-mapped and
               fingerprinted; example_store.py keeps labelled examples in memory.
3. tokenizing/ a tokenizer turns text into ids when a store is built.
4. examples/   indexed examples of known size, built on demand: (tokens, targets, weights, types, source).
5. packing/    rows by index: rows.py cuts a token stream into windows or packs examples; prefetch.py prepares batches
               in advance.

There are no stateful iterators: to resume at step s, a run asks for batch s. `lm.data.show` prints the batches.
"""
