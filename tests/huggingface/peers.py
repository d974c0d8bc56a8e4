"""Tiny models of `transformers` with random weights, saved as folders, to compare ours with."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Source
from lm.huggingface.folder import Folder
from lm.huggingface.importing import load_params
from lm.huggingface.recognising import recognise
from lm.huggingface.weights import TensorInfo

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers.logging.set_verbosity_error()

VOCABULARY, END = 64, 2
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 96}

# family -> (class, settings of its config)
BERT = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 96}
ROBERTA = {**BERT, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DISTILBERT = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 96}
MODERNBERT = {**SIZES, "num_hidden_layers": 4, "intermediate_size": 40, "max_position_embeddings": 96}
MODERNBERT |= {"local_attention": 12, "cls_token_id": 0, "sep_token_id": 2}
T5 = {"vocab_size": 64, "d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
SIDES = {"encoder_layers": 2, "decoder_layers": 3}
SIDES |= {
    f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 4), ("ffn_dim", 48))
}
BART = {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 96, "decoder_start_token_id": 2, **SIDES}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}

MODELS = {
    "t5": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 2}),
    "t5_1_1": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 2},
    ),
    "t5_encoder": ("T5EncoderModel", T5),
    "mt5_encoder": ("MT5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}),
    "mt5": ("MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 2}),
    "distilbert": ("DistilBertForMaskedLM", DISTILBERT),
    "distilbert_classes": ("DistilBertForSequenceClassification", {**DISTILBERT, "num_labels": 3}),
    "albert": ("AlbertForMaskedLM", {**BERT, "embedding_size": 16}),
    "albert_classes": ("AlbertForSequenceClassification", {**BERT, "embedding_size": 16, "hidden_act": "gelu"}),
    "electra": ("ElectraForMaskedLM", {**BERT, "embedding_size": 16}),
    "electra_classes": ("ElectraForSequenceClassification", {**BERT, "embedding_size": 32}),
    "electra_discriminator": ("ElectraForPreTraining", {**BERT, "embedding_size": 16}),
    "modernbert": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert_classes": ("ModernBertForSequenceClassification", {**MODERNBERT, "classifier_pooling": "mean"}),
    "modernbert_tags": ("ModernBertForTokenClassification", MODERNBERT),
    "bart_classes": ("BartForSequenceClassification", {**BART, "num_labels": 3}),
    "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
    "pegasus": ("PegasusForConditionalGeneration", {**BART, "activation_function": "relu"}),
    "marian": ("MarianMTModel", {**BART, "decoder_vocab_size": 64, "activation_function": "swish"}),
    "m2m_100": ("M2M100ForConditionalGeneration", {**BART}),
    "bart": ("BartForConditionalGeneration", BART),
    "bert": ("BertForMaskedLM", BERT),
    "bert_pretraining": ("BertForPreTraining", BERT),
    "bert_classes": ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "bert_number": ("BertForSequenceClassification", {**BERT, "num_labels": 1}),
    "bert_tags": ("BertForTokenClassification", {**BERT, "num_labels": 5}),
    "bert_answers": ("BertForQuestionAnswering", BERT),
    "bert_body": ("BertModel", BERT),
    "roberta": ("RobertaForMaskedLM", ROBERTA),
    "roberta_classes": ("RobertaForSequenceClassification", {**ROBERTA, "type_vocab_size": 2}),
    "xlm_roberta": ("XLMRobertaForTokenClassification", ROBERTA),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "llama": ("LlamaForCausalLM", {**LLAMA, "rms_norm_eps": 1e-5}),
    "smollm2": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True, "rope_theta": 100000.0}),
    "llama3": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen3": (
        "Qwen3ForCausalLM",
        {
            **LLAMA,
            "head_dim": 16,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    "gemma": ("GemmaForCausalLM", {**LLAMA, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**LLAMA, "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 24},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "phi3": ("Phi3ForCausalLM", {**LLAMA, "sliding_window": 9}),
    "olmo2": ("Olmo2ForCausalLM", LLAMA),
    "olmo3": ("Olmo3ForCausalLM", {**LLAMA, "num_hidden_layers": 4, "sliding_window": 7}),
    "smollm3": ("SmolLM3ForCausalLM", {**LLAMA, "num_hidden_layers": 4}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 9}),
}


def tokenizer_json(special=("<s>", "<pad>", "</s>", "<mask>")):
    """Returns a tokenizer.json of words w4, w5, ..., with the special tokens first."""
    words = {**{token: n for n, token in enumerate(special)}, **{f"w{n}": n for n in range(4, VOCABULARY)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=special[3]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str()


class MemoryFolder(Folder):
    """A folder that exists only in memory."""

    def __init__(self, config, arrays, source="FOLDER"):
        self.source, self.config, self._arrays, self.other_files = source, config, dict(arrays), {}
        self.tensors = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}

    def _read(self, name):
        return self._arrays[name]


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


def imported(folder, **options):
    """Returns (published model, parameters)."""
    published = recognise(folder, **options)
    return published, load_params(folder, published)


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


def real_tokens(tokens, mask):
    """Ends each text with the end token, which BART classifies by."""
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    tokens[np.arange(len(tokens)), last] = END
    return tokens


def rows(seed=0, count=3, length=30):
    """Returns random tokens (B, L) and a mask of the same shape; rows end (or begin) with padding."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4, VOCABULARY, (count, length))
    lengths = np.array([length, length // 2, 5])[:count]
    return tokens, np.arange(length)[None] < lengths[:, None]


def padded(left=False):
    """Returns a source and a target, each tokens, mask and positions of shape (B, L), padded on one side."""
    sides = []
    for seed, length in ((1, 30), (2, 23)):
        tokens, mask = rows(seed, length=length)
        if left:
            mask = mask[:, ::-1].copy()
        tokens = real_tokens(tokens, mask)
        sides.append((tokens, mask, (np.cumsum(mask, axis=1) - 1) * mask))
    return sides


def their_outputs(model, left=False):
    """Returns {name: values} at the real tokens, and the hidden states of every layer that we have too."""
    (tokens, mask, positions), (targets, target_mask, _) = padded(left)
    inputs = {"input_ids": np.where(mask, tokens, model.config.pad_token_id or 0), "attention_mask": mask}
    if left and "position_ids" in inspect.signature(model.forward).parameters:
        offset = positions + 2 if model.config.model_type in ("roberta", "xlm-roberta") else positions
        inputs["position_ids"] = offset * mask
    per_text = type(model).__name__.endswith("ForSequenceClassification")
    one_sided = not model.config.is_encoder_decoder or per_text or type(model).__name__.endswith("ForQuestionAnswering")
    if not one_sided:
        inputs |= {
            "decoder_input_ids": np.where(target_mask, targets, model.config.pad_token_id),
            "decoder_attention_mask": target_mask,
        }
    with torch.no_grad():
        found = model(**{k: torch.tensor(v.astype(np.int64)) for k, v in inputs.items()}, output_hidden_states=True)
    out = {}
    real = mask if one_sided else target_mask
    for name, value in found.items():
        if name in ("logits", "prediction_logits", "start_logits", "end_logits"):
            value = value.numpy()
            out[name] = value if per_text else value[real]
        elif name == "seq_relationship_logits":
            out[name] = value.numpy()
    hidden = found.encoder_hidden_states if model.config.is_encoder_decoder else found.hidden_states
    return out, [layer.numpy()[mask] for layer in hidden]


def batch_of(two_sided, left=False):
    (tokens, mask, positions), (targets, target_mask, target_positions) = padded(left)
    source = Source(*(jnp.asarray(x, jnp.int32) for x in (tokens * mask, positions, mask)))
    if not two_sided:
        targets, target_mask, target_positions = tokens, mask, positions
    arrays = (targets * target_mask, targets)
    return Batch(
        *(jnp.asarray(x, jnp.int32) for x in arrays),
        weights=jnp.asarray(target_mask, jnp.float32),
        positions=jnp.asarray(target_positions, jnp.int32),
        segments=jnp.asarray(target_mask, jnp.int32),
        source=source if two_sided else None,
    )


def our_outputs(config, model, params, left=False):
    """Returns the values of `their_outputs` for our model."""
    two_sided, objective = config.model.family == "encoder_decoder" and model.reads_source, config.objective.name
    batch, text = batch_of(two_sided, left), batch_of(False, left)
    (_, mask, _), (_, target_mask, _) = padded(left)
    out, real = {}, target_mask if two_sided else mask
    whole = model.clone(head=model.head.clone(max_masked=0)) if objective == "masked" else model

    @jax.jit
    def compute(params):
        found = None if objective == "contrastive" else whole.apply({"params": params}, batch)
        layers = range(model.text_layers + 1)
        return found, [model.token_vectors({"params": params}, text, n) for n in layers]

    found, vectors = compute(params)
    if found is not None:
        logits = np.asarray(found.logits)
        rows = np.arange(len(real))
        first, last = real.argmax(axis=1), real.shape[1] - 1 - real[:, ::-1].argmax(axis=1)
        if objective in ("classification", "regression"):
            out["logits"] = logits[rows, last if config.model.pooling == "last" else first]
        elif objective == "span_qa":
            out["start_logits"], out["end_logits"] = logits[real][:, 0], logits[real][:, 1]
        else:
            out["prediction_logits" if config.objective.next_sentence else "logits"] = logits[real]
        if config.objective.next_sentence:
            out["seq_relationship_logits"] = np.asarray(found.next_sentence_logits)[rows, first]
    return out, [np.asarray(each)[mask] for each in vectors]


def pads_left(kind):
    """Returns whether a class of `transformers` gives the right values for rows that begin with padding."""
    absolute = ("Bart", "MBart", "Pegasus", "Marian")
    first_token = kind.endswith(("ForSequenceClassification", "ForPreTraining")) and not kind.startswith("ModernBert")
    return not kind.startswith(absolute) and not first_token
