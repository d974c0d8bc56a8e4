"""Token stores are the same to the bit whoever encodes the parts, and an interrupted build continues."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import CleaningConfig
from lm.data.reading.encodings import read_errors
from lm.data.storing import building, encoding, joining
from lm.data.storing.building import Engine
from lm.data.storing.encoding import DamagedPart, Encoder, Part, count_words_and_breaks
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.vocabularies import WordTokenizer
from lm.errors import UserError, named_errors
from tests.conftest import ROOT
from tests.data.storing import documents
from tests.data.storing.documents import TEXTS, build, contents

CLEANING = CleaningConfig(strip_html=True, whitespace="collapse_lines", min_chars=2, deduplicate=True)
TOKENIZER = WordTokenizer(["one", "two", "the", "of"])

pytestmark = pytest.mark.usefixtures("small_chunks")


def make(cache, engine=None, texts=TEXTS, identity="x"):
    return build(cache, texts, TOKENIZER, identity, CLEANING, engine=engine)


def interrupted():
    yield from TEXTS[:80]
    raise KeyboardInterrupt


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
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, texts=interrupted())
    (parts,) = tmp_path.glob("*.parts")
    os.utime(parts, (time.time() - building.SECONDS_KEPT - 9,) * 2)  # continuing makes them new
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
    assert f"continuing an interrupted build; {len(done)} parts are already done" in shown
    assert all(f"{path} is damaged" in shown for path in (damaged, cut)) and shown.count("is damaged") == 2
    assert not parts.exists()


def test_an_error_in_the_data_removes_the_parts(tmp_path):
    def failing():
        yield from TEXTS[:80]
        raise UserError("bad line")

    with pytest.raises(UserError, match="bad line"):
        make(tmp_path, Engine(1), texts=failing())
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_parts_are_kept_after_an_error_of_the_machine(tmp_path, capsys, wanted):
    def failing():
        yield from TEXTS[:80]
        with named_errors("config.data.train.a"), read_errors(tmp_path / "text"):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(UserError, match=r"config\.data\.train\.a: .*text cannot be read: Input/output error"):
        make(tmp_path, Engine(1), texts=failing())
    assert contents(make(tmp_path)) == wanted
    assert "continuing an interrupted build" in capsys.readouterr().err


def test_parts_of_another_division_are_not_taken_for_those_of_this_one(tmp_path, monkeypatch, capsys, wanted):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, texts=interrupted())
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 150)
    assert contents(make(tmp_path)) == wanted
    assert "continuing" not in capsys.readouterr().err


def test_two_builders_without_locks_do_not_disturb_each_other(tmp_path, monkeypatch, wanted):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def read_while_another_builds():
        yield from TEXTS[:80]
        assert len(list(tmp_path.glob("*.parts/*.part"))) > 10
        assert contents(make(tmp_path)) == wanted
        yield from TEXTS[80:]

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert contents(make(tmp_path, texts=read_while_another_builds())) == wanted
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*tmp*"))


def test_parts_of_a_build_that_was_never_continued_are_removed_in_the_end(tmp_path):
    for name, age in (("old.parts", building.SECONDS_KEPT + 9), ("new.parts", 9)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "gone.parts").symlink_to("nowhere")  # like a directory that another process removes meanwhile
    make(tmp_path)
    assert not (tmp_path / "old.parts").exists() and (tmp_path / "new.parts").exists()


BUILD_SLOWLY = """
import sys, time
from lm.data.storing.building import Engine
from tests.data.storing.documents import SMALL, TEXTS
from tests.data.storing.test_building import make
for each in SMALL:
    setattr(*each)
def read():
    for number, text in enumerate(TEXTS):
        if number > 60:
            print("encoded", flush=True)
            time.sleep(30)
        yield text
make(sys.argv[1], Engine(2), read())
"""


def test_a_killed_build_with_workers_continues(tmp_path, capsys, wanted):
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
    deadline = time.monotonic() + 60  # a busy machine may take long to start them
    while _is_group_alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_group_alive(child.pid), "the workers end with their parent"
    assert contents(make(tmp_path)) == wanted
    assert "continuing an interrupted build" in capsys.readouterr().err and not parts.exists()


def _is_group_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- parts ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ab \n\t\x1c\x1f\x85\xa0\u2003\u3000é中\u200b")), max_size=4))
def test_words_and_line_breaks_are_counted(texts):
    expected = [len(text.split()) + text.count("\n") for text in texts]
    assert count_words_and_breaks(texts, [text.encode() for text in texts]).tolist() == expected


def test_every_white_space_is_known():
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    assert [each for each in spaces if not each.isascii()] == [
        chr(code) for code in range(128, sys.maxunicode + 1) if encoding._OTHER_SPACE.match(chr(code))
    ]
    text = "a" + "a".join(spaces) + "a"
    assert count_words_and_breaks([text], [text.encode()]) == len(spaces) + 1 + text.count("\n")


def test_a_part_is_read_as_it_was_written(tmp_path):
    found = documents.documents_of(TEXTS, ByteTokenizer(), CLEANING)
    for number, (_, chunk) in enumerate(found.all_chunks()):
        part = found.encoder.part(chunk)
        part.save(tmp_path / f"{number}.part")
        other = Part.load(tmp_path / f"{number}.part")
        assert np.array_equal(part.tokens, other.tokens) and np.array_equal(part.documents, other.documents)
        assert (part.continues, list(part.counts)) == (other.continues, list(other.counts))


def test_every_byte_of_a_part_is_checked(tmp_path):
    part = Part(np.arange(3, dtype=np.uint16), np.zeros(1, encoding.DOCUMENT), counts=({"too_short": 1}, {}))
    part.save(tmp_path / "a.part")
    content = (tmp_path / "a.part").read_bytes()
    for position in range(len(content)):
        changed = bytes([content[position] ^ 1])
        (tmp_path / "a.part").write_bytes(content[:position] + changed + content[position + 1 :])
        with pytest.raises(DamagedPart):
            Part.load(tmp_path / "a.part")


def test_errors_in_the_number_of_units_name_the_data_source():
    def refuse():
        raise UserError("tfds a: the split is unknown")

    found = documents.documents_of([], ByteTokenizer())
    found.reader.num_units = refuse
    with pytest.raises(UserError, match=r"config\.data\.train\.a: tfds a: the split is unknown"):
        next(found.all_chunks())
