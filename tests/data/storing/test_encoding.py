"""A worker process encodes the parts of this process, whatever the split and the tokenizer."""

import pytest

from lm.config import Config, TokenizerConfig, defaults, source
from lm.data.storing.documents import Documents
from lm.data.storing.splits import split_sources
from lm.data.storing.workers import Workers
from lm.data.tokenizing import build_tokenizer, restored, saved
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.tasks import task_of
from tests.data.storing.documents import TEXTS, documents_of, encoded
from tests.data.tokenizing import published, test_marian

pytestmark = pytest.mark.usefixtures("small_chunks")
LINES = [text.replace("\n", " ") for text in TEXTS]
CASES = {
    "fold": {"fold": 1, "folds": 3, "holdout_fraction": 0.3},
    "hash": {"holdout_fraction": 0.3},
    "tail": {"holdout": "tail", "holdout_fraction": 0.3},
    "pairs": {"holdout_fraction": 0.3},
}


@pytest.fixture(scope="module")
def workers():
    with Workers(encoded, 1) as workers:
        yield workers


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_split_have_the_tokens_of_its_texts(tmp_path, workers, case):
    values = defaults()
    (tmp_path / "source.txt").write_text("\n".join(LINES))
    (tmp_path / "target.txt").write_text("\n".join(LINES[7:] + LINES[:7]))
    options = {"part": (0.0, 1 / 3)} if case == "fold" else {}
    if case == "pairs":
        options = {"target_path": str(tmp_path / "target.txt"), "prefix": "translate: "}
        values.objective.name, values.model.family = "seq2seq", "encoder_decoder"
    values.data.train.a = source(path=str(tmp_path / "source.txt"), document="line", **options)
    values.data.update(CASES[case])
    config = Config.from_dict(values.to_dict())
    task, tokenizer = task_of(config), ByteTokenizer()
    for split in ("train", "valid"):
        (chosen,) = split_sources(config.data, split)
        for side in ("source", "target") if case == "pairs" else ("",):
            found = Documents(chosen, *task.open(chosen), tokenizer, side)
            tasks = [(found.encoder, chunk) for _, chunk in found.all_chunks()]
            parts = list(workers.map(iter(tasks)))
            assert parts == list(map(encoded, tasks)) and len(parts) > 5
            texts = list(chosen.texts(*task.open(chosen), *filter(None, [side])))
            assert all(text.startswith("translate: ") for text in texts) or side != "source"
            wanted = [token for text in texts for token in (1, *tokenizer.encode(text), 2)]
            assert [token for tokens, *_ in parts for token in tokens] == wanted and texts


@pytest.mark.parametrize("kind", ["sentencepiece", "extra_ids", "tokenizer.json", "marian"])
def test_a_tokenizer_is_the_same_in_another_process(tmp_path, workers, kind):
    texts = TEXTS
    if kind == "tokenizer.json":
        tokenizer = published.FAMILIES["t5"].load(tmp_path)
    elif kind == "marian":
        tokenizer, texts = test_marian.load(test_marian.write(tmp_path)).for_sources, test_marian.TEXTS * 9
    else:
        extra_ids = 3 if kind == "extra_ids" else 0
        config = TokenizerConfig(kind="sentencepiece", vocab_size=330, extra_ids=extra_ids)
        tokenizer = build_tokenizer(config, TEXTS)
    found = documents_of(texts, tokenizer)
    tasks = [(found.encoder, chunk) for _, chunk in found.all_chunks()]
    assert list(workers.map(iter(tasks))) == list(map(encoded, tasks)) and len(tasks) > 3
    other = restored(*saved(tokenizer))
    assert other.fingerprint == tokenizer.fingerprint and other.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert (other.vocab_size, other.special_tokens) == (tokenizer.vocab_size, tokenizer.special_tokens)
    assert [*other.extra_tokens] == [*tokenizer.extra_tokens]
