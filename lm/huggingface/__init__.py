"""Imports and exports published weights and tokenizers in Hugging Face formats.

    folder.py, writing.py    the files of a folder: config.json, tensors, shards
    families/                one short declarative file per model family: fields, names, heads
    fields.py                the fields of config.json <-> ModelConfig
    names.py                 tensor names and layouts <-> the parameter tree
    recognising.py           determines the family, head, settings and tensors of a folder
    sentences.py             the files of sentence-transformers: pooling, length
    generation.py            generation_config.json -> settings in `eval`
    older_tokenizers.py      builds tokenizer.json from older tokenizer files, using older_*.py
    importing.py             a folder -> a run directory
    export_directory.py      a run directory -> a folder: chooses the checkpoint, original folder and tokenizer files
    exporting.py             parameters and settings -> the tensors and config.json of a folder
    adapters.py              the LoRA adapters of a run -> a peft folder
    tokenizer_files.py       the tokenizer of a run that was not imported -> tokenizer files
    inspecting.py            reports what a folder contains and whether it can be imported, without loading the model
    checking.py              compares an imported model or a run with the same model in `transformers`

Nothing is approximated: a field or tensor that our models cannot represent is rejected with an error that names it.
"""
