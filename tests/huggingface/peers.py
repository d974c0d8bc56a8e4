"""Tiny models of `transformers` with random weights, in memory or saved as folders, to compare ours with."""

import functools
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from tests.huggingface.models import MODELS, VOCABULARY
from tests.huggingface.rows import MemoryFolder, imported, padded, types_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # the models are tiny, and pytest runs several processes


def tokenizer_json(special=("<s>", "<pad>", "</s>", "<mask>")):
    """Returns a tokenizer.json of words w4, w5, ..., with the special tokens first."""
    words = {**{token: n for n, token in enumerate(special)}, **{f"w{n}": n for n in range(4, VOCABULARY)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=special[3]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str()


def stored(model):
    """Returns the tensors that `save_pretrained` would write, without the copies of tied ones."""
    state, seen = {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            state[name] = value
        seen.add(value.data_ptr())
    return {name: value.detach().numpy().copy() for name, value in state.items()}


def folder_of(model):
    """Returns what `save_pretrained` would write, in memory."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    return MemoryFolder({**config, "architectures": [type(model).__name__]}, stored(model))


def build(kind, settings, seed=0, dtype=torch.float32, spread=True):
    """Returns a model in evaluation mode, all of whose parameters are random, norms and biases included."""
    cls = getattr(transformers, kind)
    torch.manual_seed(seed)
    config = cls.config_class(**{"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, **settings})
    config._attn_implementation = "eager"
    model = cls(config).eval()
    if settings.get("tie_word_embeddings") is False and getattr(model, "lm_head", None) is not None:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))  # T5's class ties them
    if spread:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "embed_positions" in name and kind.startswith(("Pegasus", "Marian")):
                    continue  # sinusoids
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:
                    base = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
                    base = 0.0 if name.endswith("bias") else base
                    parameter.copy_(base + 0.3 * noise)
                else:
                    parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
    return model.to(dtype)


def save(model, path: Path, **options):
    model.save_pretrained(path, **options)
    (path / "tokenizer.json").write_text(tokenizer_json())
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    return path


@functools.cache
def peer(name):
    """Returns (their model, our published model, our parameters)."""
    model = build(*MODELS[name])
    return model, *imported(folder_of(model))


def labels_texts(model):
    """Returns whether a model has one label for each text."""
    return type(model).__name__.endswith("ForSequenceClassification")


def their_inputs(model, left=False):
    """Returns the inputs of a model, and the mask of the tokens for which it has outputs."""
    tokens, mask, positions = padded("source", left)
    pad = model.config.pad_token_id or 0
    inputs = {"input_ids": np.where(mask, tokens, pad), "attention_mask": mask}
    if left and "position_ids" in inspect.signature(model.forward).parameters:
        offset = positions + 2 if model.config.model_type in ("roberta", "xlm-roberta") else positions
        inputs["position_ids"] = offset * mask
    if getattr(model.config, "type_vocab_size", 1) > 1 and "roberta" not in model.config.model_type:
        inputs["token_type_ids"] = types_of(positions)
    reads_pairs = not labels_texts(model) and not type(model).__name__.endswith("ForQuestionAnswering")
    if model.config.is_encoder_decoder and reads_pairs:
        tokens, mask, _ = padded("target", left)
        inputs |= {"decoder_input_ids": np.where(mask, tokens, pad), "decoder_attention_mask": mask}
    return {name: torch.tensor(value.astype(np.int64)) for name, value in inputs.items()}, mask


def their_outputs(model, left=False):
    """Returns {name: values} at the real tokens, and the hidden states of every layer that we have too."""
    inputs, real = their_inputs(model, left)
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    out = {}
    for name, value in found.items():
        if name in ("logits", "prediction_logits", "start_logits", "end_logits"):
            out[name] = value.numpy() if labels_texts(model) else value.numpy()[real]
        elif name == "seq_relationship_logits":
            out[name] = value.numpy()
    hidden = found.encoder_hidden_states if model.config.is_encoder_decoder else found.hidden_states
    return out, [layer.numpy()[padded("source", left)[1]] for layer in hidden]


def pads_left(kind):
    """Returns whether a class of `transformers` gives the right values for rows that begin with padding."""
    absolute = ("Bart", "MBart", "Pegasus", "Marian")
    first_token = kind.endswith(("ForSequenceClassification", "ForPreTraining")) and not kind.startswith("ModernBert")
    return not kind.startswith(absolute) and not first_token
