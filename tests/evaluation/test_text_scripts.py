"""Metrics of text in any script: copies are perfect, values by hand, and English as the libraries have it."""

import importlib.util
import random

import pytest

from lm.errors import UserError
from lm.evaluation import tokenisation
from lm.evaluation.scripts import CHINESE, JAPANESE, KOREAN, SPACED, UNSPACED, Writing, spaced, tokens
from lm.evaluation.text_metrics import TEXT_METRICS, score
from lm.evaluation.tokenisation import BLEU_TOKENIZERS, Tokenisation

METRICS = tuple(TEXT_METRICS)
TEXTS = {
    "Chinese": (CHINESE, ["今天天气很好我们去公园散步", "他在2008年买了一本 Python 新书。"]),
    "Japanese": (JAPANESE, ["東京は日本の首都です。", "スーパーで買い物をしました"]),
    "Thai": (UNSPACED, ["วันนี้อากาศดีมาก เราไปเดินเล่น", "เขาซื้อหนังสือใหม่"]),
    "Khmer": (UNSPACED, ["ភ្នំពេញជារាជធានី"]),
    "Burmese": (UNSPACED, ["ရန်ကုန်မြို့သည် ကြီးသည်"]),
    "Korean": (KOREAN, ["서울은 대한민국의 수도 이다", "그는 어제 새 책을 샀다"]),
    "Russian": (SPACED, ["Москва является столицей большой страны", "он вчера купил новую книгу"]),
    "Greek": (SPACED, ["η Αθήνα είναι η πρωτεύουσα"]),
    "Arabic": (SPACED, ["القاهرة هي عاصمة مصر الكبيرة"]),
    "Hindi": (SPACED, ["दिल्ली भारत की राजधानी है"]),
    "French": (SPACED, ["l'été dernier, où étiez-vous passés ?", "garçon, un café très sucré s'il vous plaît"]),
    "decomposed": (SPACED, ["e\u0301te\u0301 a\u0300 la c\u0327a re\u0301gion"]),
    "German": (SPACED, ["größere Straßen führen über die Brücke"]),
    "Vietnamese": (SPACED, ["Hà Nội là thủ đô của Việt Nam"]),
    "symbols": (SPACED, ["😀 ❤ ★ ☂ ☺"]),
}


@pytest.fixture(autouse=True)
def without_mecab(monkeypatch):
    monkeypatch.setattr(tokenisation, "MODULES", {"ja-mecab": ("no_such_module",), "ko-mecab": ("no_such_module",)})


def scores(metrics, predictions, references, tokenize="auto"):
    return score(metrics, predictions, [(each,) for each in references], bleu_tokenize=tokenize)


def rouge(prediction, reference, name="rouge1"):
    return scores(["rouge"], [prediction], [reference]).metrics[name]


@pytest.mark.parametrize("language", TEXTS)
def test_copy_has_perfect_scores_in_every_script(language):
    kind, texts = TEXTS[language]
    assert Writing.of(texts).kind == kind
    found = scores(METRICS, texts, texts)
    given = [metric for each in TEXT_METRICS.values() for metric in each.gives]
    assert found.metrics == {metric.name: pytest.approx(100 if metric.higher_is_better else 0) for metric in given}
    assert f"tok:{BLEU_TOKENIZERS[kind][-1]}|" in found.signatures["bleu"]
    assert "tok:unicode" in found.signatures["rouge"]
    unspaced = kind in (CHINESE, JAPANESE, UNSPACED)
    assert all(("unspaced:char" in found.signatures[name]) == unspaced for name in ("wer", "ter"))
    assert ("note on chrF++" in found.signatures) == unspaced


@pytest.mark.parametrize("language", TEXTS)
def test_no_letter_is_lost(language):
    """A text in which one token differs has lower scores by every metric."""
    _, texts = TEXTS[language]
    changed = [text.replace(tokens(text)[-1], "") for text in texts]
    found = scores(METRICS, changed, texts).metrics
    for metric in (metric for each in TEXT_METRICS.values() for metric in each.gives):
        assert found[metric.name] < 100 if metric.higher_is_better else found[metric.name] > 0, metric.name


def test_tokens_by_hand():
    assert tokens("在2008年 Summer Games，举行") == ["在", "2008", "年", "Summer", "Games", "举", "行"]
    assert tokens("スーパー") == ["ス", "ー", "パ", "ー"]
    assert tokens("हिन्दी में") == ["हिन्दी", "में"] and tokens("e\u0301te\u0301") == ["e\u0301te\u0301"]
    assert tokens("l'été, naïve") == ["l", "été", "naïve"] and tokens("한국어 문장") == ["한국어", "문장"]
    assert tokens("😀 !") == ["😀", "!"] and tokens(" ") == []
    assert spaced("我们 go，去").split() == ["我", "们", "go，", "去"]


def test_scores_of_unspaced_text_by_hand():
    """One of eight characters differs, so 1 of 8 edits, and of 7 pairs two."""
    prediction, reference = "北京是中国的城市", "北京是中国的首市"
    found = scores(METRICS, [prediction], [reference]).metrics
    assert found["wer"] == pytest.approx(100 / 8) and found["ter"] == pytest.approx(100 / 8)
    assert found["rouge1"] == found["rougeL"] == pytest.approx(100 * 7 / 8)
    assert found["rouge2"] == pytest.approx(100 * 5 / 7)
    assert found["bleu"] == pytest.approx(100 * (7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25)
    assert found["exact_match"] == 0


def test_rouge_counts_whole_words_of_unicode():
    assert rouge("кот сидит на ковре", "кот лежит на ковре") == pytest.approx(75)
    # By rouge-score, both are "t", and so equal.
    assert rouge("été", "ôté") == 0 and rouge("élève", "élevé") == 0
    assert rouge("Über die Brücke", "über der brücke") == pytest.approx(100 * 2 / 3)
    assert rouge("नमस्ते दुनिया", "नमस्ते भारत") == 50
    # Words of a-z have their stems, as in English.
    assert rouge("deux maisons bâties", "deux maison bâties") == 100 and rouge("été jumps", "été jumping") == 100


def test_rouge_lsum_takes_lines_as_sentences_in_every_script():
    found = scores(["rouge"], ["红色\n大猫"], ["大猫\n红色"]).metrics
    assert found["rougeLsum"] == 100 and found["rougeL"] == 50


ENGLISH = "The quick brown foxes weren't jumping; over 1,000 lazy dogs & cats (don’t ask why) — U.S. -based.".split()


def english(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(ENGLISH, k=draw.randint(0, 30))) for _ in range(count)]


def test_english_scores_equal_those_of_the_libraries_to_the_last_digit():
    """Also if a few of its letters are foreign."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF, TER

    predictions, references = english(80, 1), english(80, 2)
    references[3] += " at the café in 北京"
    predictions[3] += " at the cafe in 北京"
    found = scores(METRICS, predictions, references)
    for name, scorer in (("bleu", BLEU()), ("chrf", CHRF()), ("chrf++", CHRF(word_order=2)), ("ter", TER())):
        assert found.metrics[name] == scorer.corpus_score(predictions, [references]).score
        assert found.signatures[name] == str(scorer.get_signature())
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=True)
    each = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)]
    for name in names:
        total = 0.0
        for scored in each:
            total += scored[name].fmeasure
        assert found.metrics[name] == pytest.approx(100 * total / len(each), rel=1e-12)
    assert "tok:a-z0-9|stem:porter" in found.signatures["rouge"] and found.signatures["wer"] == "tok:space"


def test_all_references_determine_the_tokens():
    """A part of them in another script does not change how it is scored, and its rules do not depend on it."""
    english_and_one = [("it is late",), ("我们去公园",)] + [("the cat sat on the mat",)] * 8
    part = score(
        ["rouge", "wer", "bleu"], ["我们去公园"], [("我们去公园",)], bleu_tokenize="auto", whole=english_and_one
    )
    assert "tok:a-z0-9" in part.signatures["rouge"] or "tok:unicode" in part.signatures["rouge"]
    assert part.signatures["wer"] == "tok:space" and "tok:13a" in part.signatures["bleu"]
    alone = score(["wer"], ["我们去公园"], [("我们去公园",)], bleu_tokenize="auto")
    assert alone.signatures["wer"] == "tok:space|unspaced:char"


@pytest.mark.parametrize(
    ("references", "kind"),
    [
        (["a plain text about a river and a town"] * 5 + ["中"], SPACED),
        (["我们去公园散步 with Python"] * 5 + ["one word"], CHINESE),
        (["我々は東京へ"], JAPANESE),
        (["日本語の「の」 " + "今天天气很好我们去公园散步" * 3], CHINESE),
        (["서울에서 온 친구 漢字"], KOREAN),
        (["12 34"], SPACED),
        ([""], SPACED),
    ],
)
def test_most_of_the_text_determines_the_kind_of_writing(references, kind):
    assert Writing.of(references).kind == kind


@pytest.mark.parametrize(
    ("metric", "tokenize", "references", "note"),
    [
        ("bleu", "13a", ["今天天气很好我们去公园散步"], "cannot split text without spaces into words"),
        ("bleu", "zh", ["วันนี้อากาศดีมาก"], "cannot split text without spaces"),
        ("bleu", "auto", ["it is late", "yes"], "all references have fewer than four tokens"),
        ("bleu", "13a", ["one two three four five", "今天"], "29% of the reference tokens are characters of scripts"),
        ("wer", "auto", ["one two three four five", "今天"], "each run of these characters counts as one word"),
        ("chrf++", "auto", ["今天天气很好"], "the references have no spaces between words"),
        (
            "rouge",
            "auto",
            ["a b", "?", "yes"],
            "the 3 references include 1 without words (ROUGE is 0) and 1 of one word (ROUGE-2 is 0)",
        ),
        ("rouge", "auto", ["a b", "yes"], "the 2 references include 1 of one word (ROUGE-2 is 0)"),
    ],
)
def test_metrics_that_do_not_fit_are_noted(metric, tokenize, references, note):
    found = scores([metric], references, references, tokenize).signatures
    assert note in found[f"note on {TEXT_METRICS[metric].heading}"]
    assert not [name for name in scores(METRICS, ["a b c d e"], ["a b c d e"]).signatures if name.startswith("note")]


def test_mecab_is_used_where_it_is_installed(monkeypatch):
    references = [("東京は日本の首都です。",)]
    with pytest.raises(UserError, match=r"bleu_tokenize=ja-mecab: run `pip install 'sacrebleu\[ja\]'`"):
        Tokenisation.of(references, "ja-mecab")
    assert Tokenisation.of(references, "auto").bleu == "char"
    monkeypatch.setattr(tokenisation, "MODULES", {"ja-mecab": ("json",)})
    assert Tokenisation.of(references, "auto").bleu == "ja-mecab" and importlib.util.find_spec("json")
