"""From a config and prepared data to rows, for the tasks of documents and pairs; data that gives no rows."""

import jax
import numpy as np
import pytest

from lm.config import Config, MeshConfig, defaults, source
from lm.data.examples.denoising import Infilling, PrefixLm, SpanCorruption, Ul2
from lm.data.packing.rows import PackedRows, RowLayout, WindowExamples, WindowRows
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.errors import UserError
from lm.parallel.mesh import batch_sharding, make_mesh
from lm.runs.prepare import prepare
from lm.tasks import TASKS, task_of
from lm.tasks.denoising import ends_sentence

BATCH, SOURCE, LENGTH = 4, 64, 56
LINES = [(f"source {i} {'a. b! ' * (i % 4)}end.", f"target {i * i}{' c' * (i % 5)}") for i in range(120)]


def prepared(folder, name, length=LENGTH, overlong="truncate", **objective):
    for side, file in enumerate(("source.txt", "target.txt")):
        (folder / file).write_text("".join(f"{line[side]}\n" for line in LINES))
    values = defaults()
    target = {"target_path": str(folder / "target.txt")} if name == "seq2seq" else {}
    values.data.train.mine = source(path=str(folder / "source.txt"), document="line", **target)
    values.data.update(sequence_length=length, source_length=0 if name in ("causal", "masked") else SOURCE)
    values.data.update(cache_dir=str(folder / "cache"))
    values.data.tokenizer.update(kind="bytes", extra_ids=0 if name in ("causal", "seq2seq", "prefix_lm") else 103)
    values.data.pairs.overlong = overlong
    values.model.family = {"causal": "decoder", "masked": "encoder"}.get(name, "encoder_decoder")
    values.objective.update(name=name, permute_sentences=name == "infilling", **objective)
    values.model.token_types = 2 * values.objective.next_sentence
    values.train.batch_size = BATCH
    return prepare(Config.from_dict(values.to_dict()), folder / "run")


def train_rows(found):
    return task_of(found.config).train_rows(found.config, found.tokenizer, found.stores["train"])


def eval_rows(found):
    return task_of(found.config).eval_rows(found.config, found.tokenizer, found.stores["valid"])["mine"]


def segments_of(tokens, segments):
    return [tokens[segments == k].tolist() for k in range(1, segments.max() + 1)]


def examples_of(batch):
    """(source, inputs of the decoder, target) of every example of a batch."""
    for row in range(len(batch.tokens)):
        sources = segments_of(batch.source.tokens[row], batch.source.segments[row])
        inputs, targets = (segments_of(each[row], batch.segments[row]) for each in (batch.tokens, batch.targets))
        yield from zip(sources, inputs, targets, strict=True)


def test_pairs_reach_the_rows_as_they_were_written(tmp_path):
    found = prepared(tmp_path, "seq2seq")
    tokenizer = found.tokenizer
    rows = train_rows(found)
    assert rows.kind == PackedRows.kind
    evaluated = eval_rows(found)
    pairs = {}
    for split, batch in (
        ("train", [rows.rows(step, range(BATCH)) for step in range(rows.rows_per_epoch()["mine"] // BATCH)]),
        ("valid", [evaluated.rows(range(evaluated.num_rows))]),
    ):
        pairs[split] = set()
        for tokens, inputs, targets in (each for every in batch for each in examples_of(every)):
            assert inputs == [tokenizer.bos_id, *targets[:-1]]
            assert tokens[-1] == targets[-1] == tokenizer.eos_id
            pair = tokenizer.decode(tokens), tokenizer.decode(targets)
            assert pair in LINES and pair not in pairs[split]
            pairs[split].add(pair)
    assert not pairs["train"] & pairs["valid"]
    assert len(LINES) - 20 < len(pairs["train"]) + len(pairs["valid"]) <= len(LINES), (
        "all except the last rows of the epoch"
    )
    assert evaluated.totals["documents"] == len(pairs["valid"])
    assert evaluated.totals["bytes"] == sum(len(target) for _, target in pairs["valid"])
    assert evaluated.totals["targets"] == evaluated.totals["bytes"] + len(pairs["valid"])


@pytest.mark.parametrize("name", ["span_corruption", "ul2", "infilling", "prefix_lm"])
def test_every_denoising_task_makes_rows(tmp_path, name):
    found = prepared(tmp_path, name)
    rows = train_rows(found)
    batch = rows.rows(3, range(BATCH))
    assert batch.shape == (BATCH, LENGTH) and batch.source.tokens.shape == (BATCH, SOURCE)
    assert (batch.weights == (batch.segments > 0)).all()
    for tokens, inputs, targets in examples_of(batch):
        assert tokens[-1] == targets[-1] == found.tokenizer.eos_id and inputs[0] == found.tokenizer.bos_id
    extra = found.tokenizer.vocab_size - len(found.tokenizer.extra_tokens)
    assert (batch.source.tokens >= extra).any() == (name != "prefix_lm")
    evaluated = eval_rows(found)
    whole = evaluated.rows(range(evaluated.num_rows))
    assert whole.weights.sum() == evaluated.totals["targets"] > 0 and evaluated.totals["bytes"] == 0


def check_layouts(found, steps, width):
    """The rows of each device, made as if by a host of its own, are those that one host has."""
    batches = [train_rows(found).rows(step, range(BATCH)) for step in steps]
    shards = batch_sharding(make_mesh(MeshConfig(data=4, tensor=2))).devices_indices_map((BATCH, width))
    assert len(shards) == 8
    for rows, _ in shards.values():
        alone = train_rows(found)
        for step, batch in zip(steps, batches, strict=True):
            some = alone.rows(step, range(*rows.indices(BATCH)))
            jax.tree.map(lambda x, y, rows=rows: np.testing.assert_array_equal(x, y[rows]), some, batch)


def test_masks_are_the_same_on_one_device_and_on_eight_and_new_in_each_epoch(tmp_path):
    found = prepared(tmp_path, "span_corruption")
    whole = train_rows(found)
    steps = (0, 5, whole.rows_per_epoch()["mine"] // BATCH + 5)
    check_layouts(found, steps, SOURCE)
    first_extra = found.tokenizer.vocab_size - len(found.tokenizer.extra_tokens)
    epochs: list[dict[tuple, list]] = [{}, {}]
    for step in range(2 * steps[-1]):
        batch = whole.rows(step, range(BATCH))
        for row, (_, epoch, _) in enumerate(whole.locate(step, range(BATCH))):
            one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
            for tokens, _, targets in examples_of(one) if epoch < 2 else []:
                epochs[epoch][uncorrupted(tokens, targets, first_extra)] = tokens
    # A shorter text has only one span, which is its end (T5's masks begin with kept tokens).
    common = [text for text in epochs[0].keys() & epochs[1].keys() if len(text) > 30]
    again = sum(epochs[0][text] == epochs[1][text] for text in common)
    assert len(common) > 20 and again < 0.2 * len(common)


def uncorrupted(tokens: list[int], targets: list[int], first_extra: int) -> tuple[int, ...]:
    """The text behind an example of span corruption."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= first_extra:
            inside = spans.setdefault(token, [])
        else:
            inside.append(token)
    return tuple(each for token in tokens[:-1] for each in spans.get(token, [token]))


@pytest.mark.parametrize("objective", [{}, {"whole_words": True}, {"next_sentence": True}], ids=str)
def test_masked_rows_mask_some_of_the_text_anew_in_each_epoch(tmp_path, objective):
    found = prepared(tmp_path, "masked", **objective)
    rows, tokenizer = train_rows(found), found.tokenizer
    per_epoch = rows.rows_per_epoch()["mine"]
    check_layouts(found, (0, per_epoch // BATCH + 5), LENGTH)
    epochs: list[dict[tuple, set]] = [{}, {}]
    step = 0
    while not step or rows.locate(step, [0])[0][1] < 2:
        batch = rows.rows(step, range(BATCH))
        masked = batch.weights > 0
        text = np.where(masked, batch.targets, batch.tokens)
        assert batch.source is None and (batch.types is not None) == ("next_sentence" in objective)
        assert not np.isin(text[masked], [tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]).any()
        for row, (_, epoch, _) in enumerate(rows.locate(step, range(BATCH))):
            for segment in range(1, batch.segments[row].max() + 1) if epoch < 2 else []:
                inside = batch.segments[row] == segment
                key = tuple(text[row][inside].tolist())
                assert key[0] == tokenizer.bos_id and key[-1] == tokenizer.eos_id
                indices = tuple(np.flatnonzero(masked[row][inside]).tolist())
                assert indices
                epochs[epoch].setdefault(key, set()).add(indices)
        step += 1
    for texts in epochs if "next_sentence" not in objective else []:
        store = found.stores["train"]["mine"]
        documents = {tokenizer.decode(store.document(i)) for i in range(store.num_documents)}
        short = {text for text in documents if len(text) <= LENGTH - 2}
        assert len(short) > 50 and short <= {tokenizer.decode(key) for key in texts}, "each at least once"
        common = [key for key in texts if len(key) > 25 and key in epochs[0] and key in epochs[1]]
        assert len(common) > 20 and sum(epochs[0][key] == epochs[1][key] for key in common) < 0.2 * len(common)
    evaluated = eval_rows(found)
    batch = evaluated.rows(range(evaluated.num_rows))
    assert batch.weights.sum() == evaluated.totals["targets"] > 0
    assert evaluated.totals["bytes"] == 0
    assert evaluated.totals["documents"] == found.stores["valid"]["mine"].num_documents
    again = eval_rows(found).rows(range(evaluated.num_rows))
    jax.tree.map(np.testing.assert_array_equal, again, batch)


def test_causal_rows_are_windows(tmp_path):
    found = prepared(tmp_path, "causal")
    assert train_rows(found).kind == WindowRows.kind
    assert isinstance(eval_rows(found).examples, WindowExamples)


def test_pairs_that_are_all_too_long_are_refused(tmp_path):
    found = prepared(tmp_path, "seq2seq", length=4, overlong="drop")
    with pytest.raises(UserError, match=r"config.data.train.mine: every pair is longer than a row"):
        train_rows(found)
    evaluated = eval_rows(found)
    assert evaluated.totals["targets"] == 4 * evaluated.totals["documents"]


def test_sentences_end_with_their_punctuation():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(np.flatnonzero(ends_sentence(tokenizer))) == "!.?"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("span_corruption", SpanCorruption), ("ul2", Ul2), ("infilling", Infilling), ("prefix_lm", PrefixLm)],
)
def test_each_denoising_task_has_its_denoiser_and_refuses_vocabularies_with_too_few_extra_ids(name, kind):
    task, needed = TASKS[name], {"ul2": 103, "prefix_lm": 0}.get(name, 1)
    config = Config.from_dict(
        {
            "objective": {"name": name},
            "model": {"family": "encoder_decoder"},
            "data": {"train": {"a": {"kind": "embedded"}}, "tokenizer": {"kind": "bytes", "extra_ids": 103}},
        }
    )
    tokenizer = ByteTokenizer().with_extra_ids(needed) if needed else ByteTokenizer()
    extra_ids = [tokenizer.extra_id(i) for i in range(needed)]
    assert isinstance(task.denoiser(config, tokenizer, extra_ids), kind)
    assert task.examples(config, tokenizer, {}, True) == {}
    if needed:
        few = ByteTokenizer().with_extra_ids(needed - 1) if needed > 1 else ByteTokenizer()
        with pytest.raises(UserError, match=f"extra_ids: objective.name='{name}' needs {needed} "):
            task.examples(config, few, {}, True)


def test_layout_follows_from_the_config():
    def layout(name, family, source_options=(), **options):
        values = defaults()
        values.data.train.a = source(path="unread.txt", document="line", **dict(source_options))
        values.data.tokenizer.extra_ids = int(name == "masked")
        values.data.sequence_length = 24
        values.objective.name, values.model.family = name, family
        values.update_from_flattened_dict(options)
        config = Config.from_dict(values.to_dict())
        return task_of(config).layout(config)

    assert layout("causal", "decoder") == RowLayout(24)
    assert layout("masked", "encoder") == RowLayout(24, max_masked=8)
    assert layout("masked", "encoder", **{"model.token_types": 2}) == RowLayout(24, max_masked=8, with_types=True)
    assert layout("masked", "encoder", **{"objective.whole_words": True}) == RowLayout(24)
    scores = {"kind": "tsv", "label_field": "score"}
    assert layout("regression", "encoder", scores) == RowLayout(24, real_targets=True)
    target = {"target_path": "unread.too"}
    assert layout("seq2seq", "encoder_decoder", target, **{"data.source_length": 30}) == RowLayout(24, 30)
    assert layout("contrastive", "encoder", target) == RowLayout(24, 24)
