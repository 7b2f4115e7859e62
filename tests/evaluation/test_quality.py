import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from sacrebleu.metrics import BLEU, CHRF

from stages.evaluation.quality import Bleu, Chrf, RougeL, SlotErrorRate, exact_match, metrics, slots

PLACEHOLDER = "#[A-Z]+(?:-[A-Z]+)+#"
WORDS = ["the", "a", "hotel", "is", "in", "#HOTEL-NAME#", "north", ",", "cheap", ".", "costs", "25", "pounds", "!"]


def corpus(segments: int = 40, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Outputs, and one to four references each."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))

    references = [[text() for _ in range(draw.randint(1, 4))] for _ in range(segments)]
    outputs = [draw.choice([text(), draw.choice(many), draw.choice(many) + " . ."]) for many in references]
    return outputs, references


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """Sacrebleu's layout: one list a reference number, None where a segment has fewer."""
    most = max(map(len, references))
    return [[many[i] if i < len(many) else None for many in references] for i in range(most)]


def score(metric, outputs, references) -> float:
    [statistics] = metric.statistics([outputs], references)
    assert statistics.shape[0] == len(outputs)
    return float(metric.score(statistics.sum(axis=0)))


@pytest.mark.parametrize("seed", range(5))
def test_bleu_and_chrf_are_sacrebleus_with_varying_reference_counts(seed):
    outputs, references = corpus(seed=seed)
    for ours, theirs in ((Bleu("en"), BLEU(tokenize="13a")), (Chrf(), CHRF())):
        expected = theirs.corpus_score(outputs, streams(references))
        assert score(ours, outputs, references) == pytest.approx(expected.score, abs=1e-9)
        assert ours.signature(references) == str(theirs.get_signature())
        assert "nrefs:var" in ours.signature(references)


def test_signature_names_a_fixed_number_of_references_and_the_tokeniser():
    assert Bleu("en").signature([["a"], ["b"]]).startswith("nrefs:1|")
    assert "tok:13a" in Bleu("en").signature([["a"]])
    assert "tok:zh" in Bleu("zh").signature([["a"]])


@pytest.mark.parametrize(
    ("outputs", "references"),
    [
        (["a b c"], [["a b c"]]),  # no 4-gram at all
        (["the hotel is x y z w v"], [["the hotel was not"]]),  # no matched 3- and 4-gram: smoothed
        (["x y z w v"], [["a b c d e"]]),  # nothing matches
        ([""], [["a b c d"]]),  # empty output
        (["", "the hotel is in the north"], [["a b"], ["the hotel is in the north ."]]),
        (["a b c d e f"], [["a b c d e f"]]),
        (["a b c d"], [["a b c d e f g h"]]),  # brevity penalty
    ],
)
def test_edge_cases_score_as_sacrebleu(outputs, references):
    for ours, theirs in ((Bleu("en"), BLEU(force=True)), (Chrf(), CHRF())):
        expected = theirs.corpus_score(outputs, streams(references)).score
        assert score(ours, outputs, references) == pytest.approx(expected, abs=1e-9)


def test_chinese_bleu_is_by_character():
    outputs, references = ["酒店在市中心的北面。"], [["酒店在市中心的南面。"]]
    expected = BLEU(tokenize="zh").corpus_score(outputs, streams(references)).score
    assert score(Bleu("zh"), outputs, references) == pytest.approx(expected, abs=1e-9)
    assert expected > 0
    assert score(Bleu("en"), outputs, references) == 0


def test_statistics_of_two_systems_equal_those_of_each_alone():
    first, references = corpus(seed=1)
    second = first[::-1]
    for metric in metrics("en", PLACEHOLDER, references):
        together = metric.statistics([first, second], references)
        for system, statistics in zip((first, second), together, strict=True):
            np.testing.assert_array_equal(statistics, metric.statistics([system], references)[0])
            np.testing.assert_array_equal(statistics, np.round(statistics))  # whole, so that sums are exact


def test_rouge_l_is_the_rouge_score_packages():
    outputs, references = corpus(segments=200, seed=3)
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score_multi(many, o)["rougeL"].fmeasure for o, many in zip(outputs, references, strict=True)]
    assert score(RougeL("en"), outputs, references) == pytest.approx(100 * np.mean(expected), abs=1e-6)


@given(st.text(st.characters(max_codepoint=127)))
def test_rouge_l_words_of_ascii_are_the_rouge_score_packages(text):
    assert RougeL("en")._words(text) == tokenize(text, None)


def test_rouge_l_words_beyond_ascii_are_whole():
    assert RougeL("en")._words("Die Straße, Café_Été: дом №5") == ["die", "straße", "café", "été", "дом", "5"]
    assert score(RougeL("en"), ["Дом стоит."], [["дом стоял"]]) == pytest.approx(50)
    assert "words:[^\\W_]+" in RougeL("en").signature([["a"]])


def test_rouge_l_in_chinese_counts_characters_and_whole_numbers():
    # Words: 在 北 面 / 在 北 边 120 元: common 在 北 -> 2 * 2 / (3 + 5).
    assert score(RougeL("zh"), ["在北面。"], [["在北边，120元"]]) == pytest.approx(50)
    assert score(RougeL("en"), ["在北面。"], [["在北边，120元"]]) == 0  # why the language matters


def test_rouge_l_of_texts_without_words_is_zero():
    assert score(RougeL("en"), ["...", ""], [["!"], ["a"]]) == 0


@pytest.mark.parametrize(
    ("output", "references", "errors", "total"),
    [
        ("at #A-X# .", ["see #A-X#"], 0, 1),
        ("at .", ["see #A-X#"], 1, 1),
        ("#A-X# #A-Y#", ["see #A-X#"], 1, 1),
        ("#A-X# #A-X#", ["see #A-X#"], 1, 1),  # said twice: one extra
        ("#A-Y#", ["see #A-X#"], 2, 1),  # one missing, one extra
        ("#A-X#", ["none", "#A-X# #A-Y#", "#A-Y# #A-Z#"], 1, 2),  # ties go to the reference with more slots
        ("#A-X#", ["none"], 1, 0),
    ],
)
def test_slot_errors(output, references, errors, total):
    [statistics] = SlotErrorRate(PLACEHOLDER).statistics([[output]], [references])
    assert statistics.tolist() == [[errors, total]]
    assert score(SlotErrorRate(PLACEHOLDER), [output], [references]) == errors / max(total, 1)


def test_slots_of_a_pattern_with_groups_or_empty_matches():
    assert slots("a [B] [C] [B]", r"(\[)([A-Z])(\])") == {"[B]": 2, "[C]": 1}
    assert slots("a #B#", "(#B#)?") == {"#B#": 1}


def test_slot_error_rate_only_where_references_have_placeholders():
    names = [metric.name for metric in metrics("en", PLACEHOLDER, [["at #A-B#"]])]
    assert names == ["bleu", "chrf", "rougeL", "slot_error_rate"]
    for placeholder, references in ((None, [["at #A-B#"]]), (PLACEHOLDER, [["at noon"]])):
        assert [metric.name for metric in metrics("en", placeholder, references)] == names[:3]


def test_exact_match_and_length_ratio():
    assert exact_match(["a", "b", "c"], [["x", "a"], ["a"], ["c"]]) == pytest.approx(2 / 3)
    bleu = Bleu("en")
    [statistics] = bleu.statistics([["a b c", "d"]], [["a b c d", "a b c d e f g h"], ["d"]])
    assert bleu.length_ratio(statistics.sum(axis=0)) == pytest.approx(4 / 5)
