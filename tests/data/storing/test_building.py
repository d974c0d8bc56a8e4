"""Token stores are the same to the bit whoever encodes the parts, and an interrupted build continues."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import CleaningConfig, Config, defaults, source
from lm.data.reading import finding
from lm.data.storing import beam, building, encoding, joining
from lm.data.storing.building import Engine
from lm.data.storing.documents import Documents
from lm.data.storing.encoding import Encoder, Part, count_words
from lm.data.storing.splits import split_sources
from lm.data.storing.workers import WorkerDied, Workers
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.vocabularies import WordTokenizer
from lm.errors import UserError
from lm.tasks import task_of
from lm.tasks.texts import open_stores
from tests.conftest import ROOT
from tests.data.storing import documents
from tests.data.storing.documents import build, squared

SENTENCES = ["one <b>two</b> three\n", "a\u2003b\xa0c d", "", "the   same", "é" * 40, "x " * 30]
TEXTS = [f"{SENTENCES[i % 6]}{'' if i % 6 == 3 else i // 6}" for i in range(120)]
TEXTS[50:50] = [" ".join(f"word{i}\nof a long text," for i in range(90)), "the   same " * 60, "the   same " * 60]
CLEANING = CleaningConfig(strip_html=True, whitespace="collapse_lines", min_chars=2, deduplicate=True)
TOKENIZER = WordTokenizer(["one", "two", "the", "of"])
FILES = ("tokens.bin", "starts.bin", "hashes.bin")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(encoding, "PIECE", 300)
    monkeypatch.setattr("lm.data.tokenizing.pieces.PIECE", 300)
    monkeypatch.setattr("lm.data.tokenizing.pieces.SEARCHED", 200)
    monkeypatch.setattr(joining, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(joining, "BATCH_CHARACTERS", 400)
    monkeypatch.setattr(building, "PATIENCE", 0.0)


def make(cache, engine=None, texts=TEXTS, identity="x"):
    return build(cache, texts, TOKENIZER, identity, CLEANING, engine=engine)


def contents(store):
    manifest = {name: store.manifest[name] for name in ("counts", "dropped", "content", "dtype")}
    return manifest, [(store.directory / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The store that one process makes of chunks that are larger than all texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "BATCH_DOCUMENTS", 7)
        patch.setattr(joining, "BATCH_CHARACTERS", 400)
        return contents(make(tmp_path_factory.mktemp("wanted")))


def test_a_store_is_that_of_a_loop_over_documents(wanted):
    clean = [" ".join(text.replace("<b>", "").replace("</b>", "").split(" ")).split("\n") for text in TEXTS]
    clean = ["\n".join(" ".join(line.split()) for line in lines) for lines in clean]
    kept = [text for text in dict.fromkeys(clean) if len(text) >= 2]
    too_short = sum(len(text) < 2 for text in clean)
    dropped = {"too_short": too_short, "too_long": 0, "duplicate": len(clean) - too_short - len(kept)}
    content, position, batch = hashlib.sha256(b"uint16"), 0, []
    for index, text in enumerate(kept):
        batch.append(text)
        if sum(map(len, batch)) >= 400 or len(batch) == 7 or index == len(kept) - 1:
            tokens = [np.array([1, *TOKENIZER.encode(each), 2], np.uint16) for each in batch]
            content.update(b"".join(each.tobytes() for each in tokens))
            lengths = np.array(list(map(len, tokens)))
            content.update((position + np.cumsum(lengths) - lengths).tobytes())
            position, batch = position + int(lengths.sum()), []
    manifest, _ = wanted
    assert manifest["content"] == content.hexdigest() and manifest["dropped"] == dropped
    assert manifest["counts"] == {
        "documents": len(kept),
        "tokens": position,
        "characters": sum(map(len, kept)),
        "bytes": sum(len(text.encode()) for text in kept),
        "words": sum(len(text.split()) + text.count("\n") for text in kept),
        "unknown": sum(TOKENIZER.encode(text).count(3) for text in kept),
        "changed": sum(TOKENIZER.decode(TOKENIZER.encode(text)) != text for text in kept),
    }


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_stores_do_not_depend_on_the_number_of_workers(tmp_path, wanted, workers):
    assert contents(make(tmp_path, Engine(workers))) == wanted
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*tmp*"))


def test_an_interrupted_build_continues_with_the_parts_that_are_done(tmp_path, monkeypatch, capsys, wanted):
    def interrupted():
        yield from TEXTS[:80]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, texts=interrupted())
    (parts,) = tmp_path.glob("*.parts")
    done = sorted(parts.iterdir())
    damaged, cut = done[3], done[5]
    damaged.write_bytes(damaged.read_bytes().replace(b"\x03\x00\x03\x00", b"\x03\x00\x05\x00", 1))
    os.truncate(cut, cut.stat().st_size // 2)
    encoded = []
    monkeypatch.setattr(Encoder, "part", lambda self, chunk, part=Encoder.part: encoded.append(1) or part(self, chunk))
    capsys.readouterr()
    assert contents(make(tmp_path)) == wanted
    total = len(list(documents.documents_of(TEXTS, TOKENIZER, CLEANING).all_chunks()))
    assert len(encoded) == total - len(done) + 2
    shown = capsys.readouterr().err
    assert f"continuing an interrupted build, {len(done)} parts of which are done" in shown
    assert all(f"{path} is damaged" in shown for path in (damaged, cut)) and shown.count("is damaged") == 2
    assert not parts.exists()


def test_an_error_in_the_data_removes_the_parts(tmp_path):
    def failing():
        yield from TEXTS[:80]
        raise UserError("bad line")

    with pytest.raises(UserError, match="bad line"):
        make(tmp_path, Engine(1), texts=failing())
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_parts_of_a_build_that_was_never_continued_are_removed_in_the_end(tmp_path):
    for name, age in (("old.parts", building.SECONDS_KEPT + 9), ("new.parts", 9)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    make(tmp_path)
    assert not (tmp_path / "old.parts").exists() and (tmp_path / "new.parts").exists()


BUILD_SLOWLY = """
import sys, time
from lm.data.storing import building, encoding
from lm.data.storing.building import Engine
from tests.data.storing.test_building import TEXTS, make
building.PATIENCE, encoding.CHUNK_CHARACTERS = 0, 100
def read():
    for number, text in enumerate(TEXTS):
        if number > 60:
            print("encoded", flush=True)
            time.sleep(30)
        yield text
make(sys.argv[1], Engine(2), read())
"""


def test_a_killed_build_with_workers_continues(tmp_path, capsys):
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD_SLOWLY, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    try:
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    (parts,) = tmp_path.glob("*.parts")
    deadline = time.monotonic() + 20
    while _is_group_alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_group_alive(child.pid), "the workers end with their parent"
    make(tmp_path)
    assert "continuing an interrupted build" in capsys.readouterr().err and not parts.exists()


def _is_group_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- workers --------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_errors_in_their_place():
    with Workers(squared, 2) as workers:
        assert list(workers.map(iter(range(40)))) == [number**2 for number in range(40)]
        found = workers.map(iter([3, "slow", -1, 5]))
        assert [next(found), next(found)] == [9, "slow"]
        with pytest.raises(UserError, match="-1 is negative"):
            next(found)
    with Workers(squared, 1) as workers:
        found = workers.map(iter([2, []]))
        assert next(found) == 4
        with pytest.raises(RuntimeError, match=r"in a worker process:(.|\n)*TypeError"):
            next(found)

    def unreadable():
        yield 2
        raise UserError("line 2 is bad")

    with Workers(squared, 1) as workers:
        found = workers.map(unreadable())
        assert next(found) == 4
        with pytest.raises(UserError, match="line 2 is bad"):
            next(found)
        (imported,) = workers.map(iter(["imported"]))
        assert "numpy" in imported and not {"jax", "grain", "tensorflow_datasets", "pyarrow"} & set(imported)
        found = workers.map(iter([1, "kill", 2]))
        assert next(found) == 1
        with pytest.raises(WorkerDied, match=r"was killed by SIGKILL; memory may have run out\. Run the same command"):
            list(found)


# --- Beam -----------------------------------------------------------------------------------------------------


@pytest.fixture
def several_files(tmp_path, monkeypatch):
    """Documents of several files, each a unit of its own, and an empty one."""
    monkeypatch.setattr(finding, "UNIT_BYTES", 10)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("\n".join(TEXTS[number * 20 : number * 20 + 20 * (number != 2)]))
    values = defaults()
    values.data.train.a = source(path=str(tmp_path / "*.txt"), document="line")
    values.data.cleaning.deduplicate = True
    values.data.cache_dir = str(tmp_path)
    config = Config.from_dict(values.to_dict())

    def store(cache, **changes):
        values.data.update(changes)
        config = Config.from_dict(values.to_dict())
        (split,) = split_sources(config.data, "train")
        (found,) = open_stores(task_of(config), split, {"": ByteTokenizer()}, cache)
        return found

    (split,) = split_sources(config.data, "train")
    reader, rules = task_of(config).open(split)
    return Documents(split, reader, rules, ByteTokenizer()), store


def test_the_functions_of_the_pipeline_write_the_parts_of_one_process(tmp_path, several_files):
    found, _ = several_files
    assert found.num_units() >= 4
    read, write = pickle.loads(
        pickle.dumps((beam.UnitReader(found, tmp_path / "p"), beam.ChunkWriter(found, tmp_path / "p")))
    )
    (tmp_path / "p").mkdir()
    names = [write(named) for unit in reversed(range(found.num_units())) for named in read(unit)]
    assert len(names) == len(list(found.all_chunks())) > found.num_units()
    for name, chunk in found.all_chunks():
        found.encoder.part(chunk).save(tmp_path / f"{name}.part")
        assert (tmp_path / f"{name}.part").read_bytes() == (tmp_path / "p" / f"{name}.part").read_bytes()
    assert not any(True for unit in range(found.num_units()) for _ in read(unit)), "all parts are done"


def test_beam_makes_the_same_store(tmp_path, several_files):
    pytest.importorskip("apache_beam")
    _, store = several_files
    one = store(tmp_path / "one", store_workers=1)
    other = store(tmp_path / "other", beam="--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner")
    assert contents(one) == contents(other)


def test_beam_that_is_missing_is_reported_in_one_line(tmp_path, several_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    _, store = several_files
    with pytest.raises(UserError, match=r"config\.data\.beam: Apache Beam is not installed; run `pip install -r"):
        store(tmp_path / "cache", beam="--runner=DirectRunner")


# --- parts ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ab \n\t\x1c\x1f\x85\xa0\u2003\u3000é中\u200b")), max_size=4))
def test_words_are_counted_as_split_counts_them(texts):
    assert count_words(texts, [text.encode() for text in texts]).tolist() == [len(text.split()) for text in texts]


def test_every_white_space_is_known():
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    assert [each for each in spaces if not each.isascii()] == [
        chr(code) for code in range(128, sys.maxunicode + 1) if encoding._OTHER_SPACE.match(chr(code))
    ]
    assert count_words(["a" + "a".join(spaces) + "a"], [("a" + "a".join(spaces) + "a").encode()]) == len(spaces) + 1


def test_a_part_is_read_as_it_was_written(tmp_path):
    found = documents.documents_of(TEXTS, ByteTokenizer(), CLEANING)
    for number, (_, chunk) in enumerate(found.all_chunks()):
        part = found.encoder.part(chunk)
        part.save(tmp_path / f"{number}.part")
        other = Part.load(tmp_path / f"{number}.part")
        assert np.array_equal(part.tokens, other.tokens) and np.array_equal(part.documents, other.documents)
        assert (part.continues, list(part.counts)) == (other.continues, list(other.counts))
