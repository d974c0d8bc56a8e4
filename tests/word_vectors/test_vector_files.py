"""Files of word vectors: what is written is read again to the bit, gensim agrees, and damage gives one clear line."""

import gzip
import io

import numpy as np
import pytest

from benchmarks.word_vector_files import GOLDEN, WORDS, vectors
from lm.data import vector_files
from lm.data.vector_files import WRITERS, dimension_of, read_vectors, write_vectors
from lm.errors import UserError

FORMATS = {"word2vec": "word2vec text", "binary": "word2vec binary", "glove": "GloVe text"}


def written(path, kind, words=WORDS, vectors_VE=None):
    with path.open("wb") as file:
        WRITERS[kind](file, words, vectors() if vectors_VE is None else vectors_VE)
    return path


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_recognised_and_restores_every_bit(tmp_path, kind):
    values = np.float32([[1e-38, -3.4e38, 0.1], [np.pi, -0.0, 2**-24]])
    found = read_vectors(written(tmp_path / "v", kind, ["a", "北"], values))
    assert (found.words, found.format, found.num_words) == (["a", "北"], FORMATS[kind], 2)
    assert found.vectors_VE.dtype == np.float32
    np.testing.assert_array_equal(found.vectors_VE.view(np.uint32), values.view(np.uint32))


def test_compressed_files_wanted_words_and_a_limit(tmp_path):
    path = tmp_path / "v.bin.gz"
    path.write_bytes(gzip.compress(written(tmp_path / "v", "binary").read_bytes()))
    assert dimension_of(path) == 5
    np.testing.assert_array_equal(read_vectors(path, {"北京", "absent"}).vectors_VE, vectors()[2:3])
    found = read_vectors(path, {"the", "can't"}, limit=4)
    assert (found.words, found.num_words) == (["the"], 4)


def test_binary_vectors_are_read_across_the_ends_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_files, "BLOCK", 7)
    words = [f"w{i}" for i in range(3000)]
    values = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32)
    found = read_vectors(written(tmp_path / "v", "binary", words, values))
    assert found.words == words
    np.testing.assert_array_equal(found.vectors_VE, values)


@pytest.mark.parametrize("ending", ["txt", "bin"])
def test_files_of_gensim_are_read(ending):
    found = read_vectors(GOLDEN / f"gensim_vectors.{ending}")
    assert tuple(found.words) == WORDS
    np.testing.assert_allclose(found.vectors_VE, vectors(), atol=1e-7)


def test_fasttext_files_with_a_space_at_the_end_of_each_line_are_read(tmp_path):
    (tmp_path / "v.vec").write_text("2 2\n</s> 0.5 -1 \nthe 1e-3 2 \n\n")
    np.testing.assert_allclose(read_vectors(tmp_path / "v.vec").vectors_VE, [[0.5, -1], [0.001, 2]])


def test_glove_words_may_contain_spaces(tmp_path):
    (tmp_path / "v").write_text("a 1 2\n. . . 3 4\n")
    assert read_vectors(tmp_path / "v").words == ["a", ". . ."]
    (tmp_path / "v").write_text("New York 1 2\na 3 4\n")
    assert read_vectors(tmp_path / "v").words == ["New York", "a"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("gz", [False, True])
def test_whitespace_in_words_is_replaced_and_reported(tmp_path, kind, gz):
    file, path = io.BytesIO(), tmp_path / ("v.gz" if gz else "v")
    notes = write_vectors(file, kind, ["a", ". . .", "b c", "b_c", "d\u00a0e"], np.eye(5, dtype=np.float32), gz)
    path.write_bytes(file.getvalue())
    found = read_vectors(path)
    assert found.words == ["a", "._._.", "b_c", "d\u00a0e"] and found.format == FORMATS[kind]
    np.testing.assert_array_equal(found.vectors_VE, np.eye(5)[[0, 1, 3, 4]])
    assert notes == [
        "whitespace in 2 of 5 words, e.g. '. . .', is written as _",
        "1 of these words are left out, because the word with _ already exists",
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_word(tmp_path):
    for content in ("a 1 2\n", "1 2\na 1 2\n"):
        (tmp_path / "v").write_text(content, encoding="utf-8-sig")
        assert read_vectors(tmp_path / "v").words == ["a"]


@pytest.mark.parametrize("kind", ["word2vec", "binary"])
def test_gensim_reads_our_files(tmp_path, kind):
    models = pytest.importorskip("gensim.models", reason="needs requirements-vectors.txt")
    path = written(tmp_path / "v", kind)
    table = models.KeyedVectors.load_word2vec_format(str(path), binary=kind == "binary")
    assert tuple(table.index_to_key) == WORDS
    np.testing.assert_array_equal(table.vectors, vectors())


BINARY = b"2 2\na " + np.float32([1, 2]).tobytes() + b"\nb " + np.float32([3, 4]).tobytes() + b"\n"
NAN = b"1 2\na " + np.float32([1, np.nan]).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty or begins with an empty line"),
        (b"\n\n", "is empty or begins with an empty line"),
        (b"2 3\na 1 2 3\nb 1 2\n", "line 3: the line has 2 instead of 3 values"),
        (b"a 1 2 3\nb 1 2 3 4\n", "line 2: the line has more than 3 values"),
        (b"a 1 2\nb 1 2\na 3 4\n", "line 3: the word 'a' occurs twice (first: word 1)"),
        (b"a 1 2\nb 1 nan\n", "line 2: the vector of 'b' has a value that is not finite"),
        (b"a 1 2\nb 1 1e60\n", "line 2: the vector of 'b' has a value that is not finite"),
        (NAN, "word 1 of 1: the vector of 'a' has a value that is not finite"),
        (b"25000000 100\na 1 2\n", "declares 25,000,000 words of 100 values each, at least 5,025,000,000 bytes"),
        (b"25000000 100\na \xff\xff\xff\xff", "at least 10,050,000,000 bytes, but the file has 19 bytes"),
        (b"1 999999999999\na 1\n", "the header declares 1 words of 999,999,999,999 values each"),
        (b"0 5\n", "the header declares 0 words"),
        (BINARY[:-6], "word 2 of 2: the file ends within this entry"),
        (BINARY + b"x", "the header declares 2 words, but there is more data"),
        (b"2 2\na 1 2\nb 1 2\nc 1 2\n", "the header declares 2 words, but there are more"),
        (b"3 2\na 1.5 2.5\nb 1.5 2.5\n", "the header declares 3 words, but there are 2"),
        (b"a 1 2\nb 1 x\n", "line 2: 'x' is not a number"),
        (b"a 1 2\n\xff 1 2\n", "line 2: this is not UTF-8 text"),
        (b"a 1 2\n\nb 1 2\n", "line 2: the line is empty"),
        (b"2 2\na 1 x\nb 3 4\n", "line 2: 'x' is not a number"),
        (b"2 2\na 1\nb 3 4\n", "line 2: the line has 1 instead of 2 values"),
        (b"word\n", "line 1: expected a word and its vector"),
        (b"a 1 x 3\nb 1 2 3\n", "line 1: 'x' is not a number"),
    ],
)
def test_damaged_files_are_refused_with_the_reason_and_the_position(tmp_path, content, message):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_vectors(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_promise_that_cannot_be_checked_reserves_no_memory(tmp_path):
    path = tmp_path / "v.gz"
    path.write_bytes(gzip.compress(b"900000000000000000 100000\na 1 2\n"))
    with pytest.raises(UserError, match=r"line 2: the line has 2 instead of 100,000 values"):
        read_vectors(path)
    path.write_bytes(gzip.compress(b"a 1 2\nb 3 4\n")[:-9])
    with pytest.raises(UserError, match="damaged or not a gzip file"):
        read_vectors(path)
