"""Tiny published models: their classes in `transformers` and the settings that differ from the class defaults.

They have every kind of wiring that a family has. Windows and the original lengths of scaled rotary positions are so
small that the rows of `rows.py` are longer than twice the windows and four times the original lengths.
"""

import pytest

VOCABULARY, END = 64, 2
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 96}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}
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

# Fields for version 4 of transformers, which the export adds to those of version 5.
OLDER = {"torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"}
OLDER |= {"global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"}

# name -> (class, settings of its config)
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
    "smollm2": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True, "rope_theta": 1e5, "attention_bias": True}),
    "llama3": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 0.5,
                "high_freq_factor": 1.5,
                "original_max_position_embeddings": 12,
            },
            "rope_theta": 30.0,  # so that one frequency is kept, one is interpolated, and two are divided
            "mlp_bias": True,
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2_yarn": (
        "Qwen2ForCausalLM",
        {
            **LLAMA,
            "rope_scaling": {
                **YARN,
                "beta_fast": 4.0,
                "beta_slow": 0.3,
                "attention_factor": 1.3,
                "truncate": False,
            },
            "rope_theta": 50.0,
        },
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {
            **LLAMA,
            "head_dim": 16,
            "rope_scaling": YARN,
        },
    ),
    "gemma": ("GemmaForCausalLM", {**LLAMA, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": 7,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
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
    "olmo3_yarn": (
        "Olmo3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "sliding_window": 21,
            "rope_parameters": {
                kind: {"rope_theta": 10000.0, **YARN} for kind in ("full_attention", "sliding_attention")
            },
        },
    ),
    "smollm3": ("SmolLM3ForCausalLM", {**LLAMA, "num_hidden_layers": 4}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 9}),
}

# One model for each kind of wiring. Tests of the others are marked.
QUICK = "gpt2 llama3 gemma3 t5 bart bert roberta modernbert_classes".split()
# Imported as bodies that give vectors of texts, without a head and without a loss.
HEADLESS = ("bert_body", "electra_discriminator", "t5_encoder", "mt5_encoder")


def each_model(names, quick=QUICK):
    """Returns a decorator that runs a test with each name. Those that are not in `quick` are marked as exhaustive."""
    mark = pytest.mark.exhaustive
    return pytest.mark.parametrize("name", [x if x in quick else pytest.param(x, marks=mark) for x in names])
