"""Comment lines, columns by name or number, and CoNLL-U; a file whose columns are unclear is refused."""

import pytest

from lm.config import SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.readers import READERS, Tagged
from lm.errors import UserError


def reader(path, **options):
    return open_reader(SourceConfig(kind="conll", path=path, **options), READERS["tags"])


def read(path, **options):
    return list(reader(path, **options).iterate())


def tagged(*sentences):
    return [
        Tagged(*map(tuple, zip(*(word.rsplit("/", 1) for word in each.split()), strict=True))) for each in sentences
    ]


CONLLU = """# newdoc
# sent_id = 1
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\tSpaceAfter=No
5.1\tnada\t_\tNOUN\t_\t_\t_\t_\t1:x\t_

# text = #
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""
WORDS = tagged("Vamos/VERB nos/PRON a/ADP el/DET mar/NOUN", "#/SYM")


@pytest.mark.parametrize(
    "options",
    [
        {"label_field": "UPOS"},
        {"label_field": "upos", "field": "FORM"},
        {"label_field": "4", "field": "2"},
        {"label_field": "4"},
    ],
)
def test_conllu_gives_the_words_and_the_named_column(write, options):
    found = reader(write("a.conllu", CONLLU), **options)
    assert list(found.iterate()) == WORDS
    skipped = ["4 comment lines are skipped", "3 multiword tokens and empty nodes are skipped"]
    inferred = (
        []
        if "field" in options
        else ["column 1 numbers the words, so words are read from column 2 and tags are read from column 4"]
    )
    assert found.notes() == inferred + skipped
    lemmas = read(write("a.conllu", CONLLU), field="LEMMA", label_field="DEPREL")[0]
    assert (lemmas.words[0], lemmas.tags[0]) == ("ir", "root")


def test_conllu_needs_the_name_of_the_tag_column(write):
    path = write("a.conllu", CONLLU)
    with pytest.raises(UserError, match="this is CoNLL-U, whose last column holds no tags; set label_field"):
        read(path)
    for options, message in (
        ({"label_field": "NER"}, "label_field: no column is called 'NER'; the columns are called ID, FORM"),
        ({"label_field": "UPOS", "field": "4"}, "column 4 cannot hold both the word and the tag"),
        ({"label_field": "11"}, "line 5: label_field is 11, but there are only 10 columns"),
    ):
        with pytest.raises(UserError, match=message):
            read(path, **options)


def test_columns_are_named_by_a_comment_or_a_header(write):
    plus = "# global.columns = ID FORM NER\n1\ta\tB-X\n2\tb\tO\n"
    assert read(write("a.conllup", plus), label_field="ner") == tagged("a/B-X b/O")
    header = "Token POS NER\na DET O\n\nb NOUN B-X\n"
    path = write("b.txt", header)
    assert read(path, field="token", label_field="ner") == tagged("a/O", "b/B-X")
    assert read(path, label_field="pos") == tagged("a/DET", "b/NOUN")
    with pytest.raises(UserError, match=r"first line seems to name the columns \(Token, POS, NER\); set field='Token'"):
        read(path)
    with pytest.raises(UserError, match="no column is called 'x'; the file does not name its columns"):
        read(path, label_field="x")
    with pytest.raises(UserError, match="label_field: several columns are called 'O'"):
        read(write("c.txt", "a O O\n"), label_field="O")
    with pytest.raises(UserError, match="line 3: this line repeats the column names"):
        read(write("d.txt", "Token NER\na O\nToken NER\nb O\n"), field="token", label_field="ner")


GERMEVAL = "#\thttp://x [2009]\n1\tBerlin\tB-LOC\tO\n2\tlies\tO\tO\n\n#\thttp://y\n1\tBonn\tB-LOC\tB-OTH\n"


def test_words_are_numbered_in_germeval(write):
    path = write("a.tsv", GERMEVAL)
    assert read(path, label_field="3") == tagged("Berlin/B-LOC lies/O", "Bonn/B-LOC")
    found = reader(path)
    assert list(found.iterate()) == tagged("Berlin/O lies/O", "Bonn/B-OTH")
    assert found.notes() == [
        "column 1 numbers the words, so words are read from column 2 and tags are read from column 4",
        "2 comment lines are skipped",
    ]


@pytest.mark.parametrize(
    ("content", "want", "comments"),
    [
        ("# id 1\nBerlin B-LOC\nlies O\n\n# id 2\nBonn B-LOC\n", ("Berlin/B-LOC lies/O", "Bonn/B-LOC"), 2),
        ("# one\nBerlin B-LOC\n\n#id\nBonn O\n", ("Berlin/B-LOC", "Bonn/O"), 2),
        ("#Berlin\tO\nlies\tO\n\n#\tO\nBonn\tB-LOC\n", ("#Berlin/O lies/O", "#/O Bonn/B-LOC"), 0),
        ("lies\tO\n#Berlin\tB-LOC\n# x\ty\n", ("lies/O #Berlin/B-LOC #_x/y",), 0),
        ("#begin document\na O\n\n#end document\n", ("a/O",), 2),
        ("# text = x O\na b c d O\n", ("a/O",), 1),
        ("a O\n1 O\n\n2 O\n", ("a/O 1/O", "2/O"), 0),
        ("-DOCSTART- O\n\n# c\na O\n", ("a/O",), 1),
    ],
)
def test_a_line_that_begins_with_a_hash_is_a_comment_unless_it_is_a_tagged_word(write, content, want, comments):
    found = reader(write("a.conll", content))
    words = [Tagged(tuple(w.replace("_", " ") for w in each.words), each.tags) for each in tagged(*want)]
    assert list(found.iterate()) == words
    assert found.notes() == ([f"{comments} comment lines are skipped"] if comments else [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "7\tBerlin\tO\n7\tlies\tO\n\n8\ta\tO\n",
            "column 1 holds only numbers; set `field` to the word column",
        ),
        ("a O\n# x y z\n", "line 2: this line has 4 columns, but earlier lines have 2"),
        ("1\tBerlin\tO\n", "column 1 holds only numbers; set `field`"),
        ("# only\n# comments\n", "contains no documents"),
    ],
)
def test_unclear_lines_are_refused(write, content, message):
    with pytest.raises(UserError, match=message):
        read(write("a.conll", content))


def test_comment_before_a_tag_column_that_does_not_exist_is_skipped(write):
    with pytest.raises(UserError, match="line 2: label_field is 5, but there are only 2 columns"):
        read(write("a.conll", "# c\na O\n"), label_field="5")


def test_the_word_may_follow_its_tag_and_a_number_of_the_sentence(write):
    path = write("a.tsv", "7\tO\tBerlin\n7\tX\tlies\n")
    assert read(path, field="3", label_field="2") == tagged("Berlin/O lies/X")
    assert reader(path, field="3", label_field="2").fingerprint() != reader(path, label_field="2").fingerprint()
    with pytest.raises(UserError, match="label_field: '3' is the word column, not a tag column"):
        reader(path, field="3", label_field="3")
