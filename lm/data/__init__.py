"""The data pipeline, from files to batches. Each row depends only on the config and the row's index.

A document passes through the following steps, each implemented by one sub-package:

1. reading/    a format (text.py, records.py, ...) finds the files and yields records; a reader turns the records into
               raw examples. format.py defines the base classes and the document reader; readers.py defines the other
               readers.
2. storing/    splits.py cleans the examples and selects those that belong to the split: all examples, a subset, a
               fold, or one side of a holdout. token_store.py caches the token ids of documents and pairs in
               memory-mapped files with a fingerprint. building.py creates these files, using worker processes if
               there is a lot of text. example_store.py keeps labelled examples in memory.
3. tokenizing/ a tokenizer turns text into ids when a store is built.
4. examples/   indexed examples (tokens, targets, weights, types, source) of known size, built on demand.
5. packing/    rows.py builds the row with a given index by cutting a window from a token stream or by packing
               examples; prefetch.py prepares batches in advance and places them on the devices.

There are no stateful iterators: to resume at step s, a run requests batch s. `lm.data.show` prints the batches.
"""
