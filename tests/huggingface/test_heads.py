"""Heads of published models beyond those in `peers.MODELS`: values, round trips, and what a class cannot express."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lm.config.experiment import replace_settings
from lm.errors import UserError
from lm.huggingface.exporting import Original, choose_class, export
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import write_provenance
from tests.huggingface.models import BART, BERT, DISTILBERT, GPT2, LLAMA, MODELS, MODERNBERT, OLDER, ROBERTA
from tests.huggingface.peers import build, folder_of, pads_left, save, their_outputs
from tests.huggingface.rows import imported, our_outputs

TOLERANCE = 1e-4
# name -> (class, settings of its config)
HEADS = {
    "distilbert_tags": ("DistilBertForTokenClassification", {**DISTILBERT, "num_labels": 5}),
    "distilbert_answers": ("DistilBertForQuestionAnswering", DISTILBERT),
    "albert_tags": ("AlbertForTokenClassification", {**BERT, "embedding_size": 16, "num_labels": 5}),
    "albert_answers": ("AlbertForQuestionAnswering", {**BERT, "embedding_size": 16}),
    "electra_tags": ("ElectraForTokenClassification", {**BERT, "embedding_size": 16, "num_labels": 5}),
    "electra_answers": ("ElectraForQuestionAnswering", {**BERT, "embedding_size": 16}),
    "modernbert_answers": ("ModernBertForQuestionAnswering", MODERNBERT),
    "bart_answers": ("BartForQuestionAnswering", BART),
    "roberta_tags": ("RobertaForTokenClassification", {**ROBERTA, "num_labels": 5}),
    "roberta_answers": ("RobertaForQuestionAnswering", ROBERTA),
    "gpt2_classes": ("GPT2ForSequenceClassification", {**GPT2, "num_labels": 3}),
    "gpt2_tags": ("GPT2ForTokenClassification", {**GPT2, "num_labels": 5}),
    "gpt2_answers": ("GPT2ForQuestionAnswering", GPT2),
    **{
        f"{kind.lower()}_classes": (f"{kind}ForSequenceClassification", {**LLAMA, "num_labels": 3})
        for kind in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text")
    },
    "llama_number": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 1}),
    "llama_tags": ("LlamaForTokenClassification", {**LLAMA, "num_labels": 5}),
}


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("name", HEADS)
def test_values_match(name):
    kind, settings = HEADS[name]
    model = build(kind, settings)
    published, params = imported(folder_of(model))
    layouts = ("right", "left") if pads_left(kind) else ("right",)
    for layout, (found, vectors) in zip(layouts, our_outputs(published, params, layouts), strict=True):
        outputs, hidden = their_outputs(model, left=layout == "left")
        assert found and outputs.keys() >= found.keys()
        for key, values in found.items():
            np.testing.assert_allclose(values, outputs[key], rtol=0, atol=TOLERANCE, err_msg=key)
        for theirs, ours in zip(hidden, vectors, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", HEADS)
def test_round_trip_is_exact(name, tmp_path):
    """Tensors and config.json come back, and a model without an original gets the same class and values."""
    kind, settings = HEADS[name]
    model = build(kind, settings)
    folder = open_folder(save(model, tmp_path / "in"))
    published, params = imported(folder)
    write_provenance(folder, published, tmp_path / "huggingface")
    assert export(params, published.config, tmp_path / "out", Original.read(tmp_path / "huggingface")) == kind
    out = open_folder(tmp_path / "out")
    changed = {key for key in {*folder.config, *out.config} if folder.config.get(key) != out.config.get(key)}
    assert changed <= OLDER - folder.config.keys() and out.tensors.keys() == folder.tensors.keys() - set(
        published.match.ignored
    )
    assert all(out.read(tensor).tobytes() == folder.read(tensor).tobytes() for tensor in out.tensors)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    architecture = export(params, published.config, tmp_path / "new", special_ids=ids)
    expected, _ = their_outputs(model)
    for cls, path in ((kind, "out"), (architecture, "new")):
        loaded, info = getattr(transformers, cls).from_pretrained(
            tmp_path / path, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(info.values()), info
        for key, values in their_outputs(loaded)[0].items():
            np.testing.assert_allclose(values, expected[key], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert_classes", {"pooling": "mean"}, r"needs model\.pooling='first'"),
        ("llama_classes", {"pooling": "mean"}, r"needs model\.pooling='last'"),
        ("llama_classes", {"classifier_bias": True}, r"needs model\.classifier_bias=False"),
        ("llama_classes", {"pooler": True}, r"model\.pooler=True"),
        ("modernbert_classes", {"pooling": "last"}, r"model\.pooling='last'"),
        ("bert_tags", {"pooler": True}, r"needs model\.pooler=False"),
        ("bert_answers", {"answer_pooler": True}, r"model\.answer_pooler=True"),
    ],
)
def test_heads_that_the_class_lacks_are_refused(name, changes, message):
    """Nothing is exported as a class that would compute something else."""
    config = imported(folder_of(build(*{**MODELS, **HEADS}[name])))[0].config
    config = replace_settings(config, {f"model.{key}": value for key, value in changes.items()})
    with pytest.raises(UserError, match=message):
        choose_class(config, None)


def test_a_classifier_made_from_a_decoder_gets_the_padding_token(tmp_path):
    """`transformers` needs it to find the last token of each text."""
    folder = open_folder(save(build(*MODELS["llama"]), tmp_path / "in"))
    folder.config.pop("pad_token_id")
    write_provenance(folder, imported(folder)[0], tmp_path / "huggingface")
    tuned, params = imported(folder_of(build(*HEADS["llama_classes"])))
    original = Original.read(tmp_path / "huggingface")
    kind = export(params, tuned.config, tmp_path / "out", original, special_ids={"pad_token_id": 7})
    written = open_folder(tmp_path / "out").config
    assert kind == "LlamaForSequenceClassification" and written["pad_token_id"] == 7
    assert written["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
