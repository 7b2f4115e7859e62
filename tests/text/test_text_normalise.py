"""Each step by cases worked out by hand, and what holds for any text."""

from __future__ import annotations

import re
import unicodedata
from unittest.mock import Mock

import ftfy
import pytest
from ftfy.badness import BADNESS_RE
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.text import normalise
from stages.text.normalise import _MAY_BE_MOJIBAKE, Normaliser, comparable

OFF = {
    "repair_encoding": False,
    "unicode_form": None,
    "strip_control": False,
    "strip_html": False,
    "collapse_whitespace": False,
}
ALL = Normaliser(True, "NFC", True, True, True)
COMPATIBLE = Normaliser(True, "NFKC", True, True, True)

CASES = [
    ("repair_encoding", "cafÃ© au lait", "café au lait"),
    ("repair_encoding", "itâ€™s", "it’s"),
    ("repair_encoding", "café “naïve” ﬁn", "café “naïve” ﬁn"),
    ("repair_encoding", "您好，“再见”！", "您好，“再见”！"),
    ("repair_encoding", "æ‚¨å¥½", "您好"),
    ("strip_control", "a\x00b\x07c\x7fd\x9fe", "abcde"),
    ("strip_control", "zero\u200bwidth\ufeff\u2060 so\u00adft \u202eright\u202c", "zerowidth soft right"),
    ("strip_control", "form\x0cfeed\x85next", "form feed next"),
    ("strip_control", "tab\tand\nbreak\r stay", "tab\tand\nbreak\r stay"),
    ("strip_control", "می\u200cخواهم 👩\u200d🍳", "می\u200cخواهم 👩\u200d🍳"),
    ("strip_html", "Tom &amp; Jerry &lt;3 &#20320;&#x597d; caf&eacute;", "Tom & Jerry <3 你好 café"),
    ("strip_html", "twice &amp;amp; escaped", "twice & escaped"),
    ("strip_html", "R&D, AT&T; a&copy=1", "R&D, AT&T; a&copy=1"),
    ("strip_html", 'A <b>bold</b> <A HREF="x">link</A>, H<sub>2</sub>O', "A bold link, H2O"),
    ("strip_html", "one<br/>two<BR>three</p><p class='x'>four", "one two three  four"),
    ("strip_html", "a<!-- note -->b<script>var x = '<b>';</script>c<style>p {}</style>d", "a b c d"),
    (
        "strip_html",
        "keep <name>, <address>, <time>, a < b > c, <3, <br",
        "keep <name>, <address>, <time>, a < b > c, <3, <br",
    ),
    ("strip_html", "a <b and c> d, price <i think> 5, x <a = b>", "a <b and c> d, price <i think> 5, x <a = b>"),
    (
        "strip_html",
        """see <img src='a>b' alt=""/>this<td nowrap width = 5 >cell <a href=x.html>y</a >""",
        "see this cell y",
    ),
    ("collapse_whitespace", "  two  spaces \t\n and\u3000wide\u00a0ones ", "two spaces and wide ones"),
]


@pytest.mark.parametrize(("step", "before", "after"), CASES)
def test_step_alone(step, before, after):
    assert Normaliser(**{**OFF, step: True})(before) == after


@pytest.mark.parametrize("text", [case[1] for case in CASES])
def test_nothing_changes_with_all_steps_off(text):
    assert Normaliser(**OFF)(text) == text


def test_unicode_forms():
    decomposed, ligature, wide = "cafe\u0301", "ﬁn", "，Ａ"
    assert Normaliser(**{**OFF, "unicode_form": "NFC"})(decomposed + ligature + wide) == "caféﬁn，Ａ"
    assert Normaliser(**{**OFF, "unicode_form": "NFKC"})(decomposed + ligature + wide) == "caféfin,A"


def test_default_steps_keep_what_the_bundled_texts_mean(settings):
    clean = Normaliser.of(settings().clean)
    text = "I  ca n't book #HOTEL-INFORM-NAME# .\n  It 's [Inform+酒店+名称]，对吗？"
    assert clean(text) == "I ca n't book #HOTEL-INFORM-NAME# . It 's [Inform+酒店+名称]，对吗？"


def test_steps_uncover_work_for_each_other():
    assert ALL("&#8203;a&l\u200bt;b&gt;&nbsp;&amp;lt;i&amp;gt;c ") == "a c"


# Pieces that the steps act on, so that they meet each other often.
PIECES = st.sampled_from(
    [
        *"&<>/ \n\x85\x1f\xa0\u0301\u200b\u3000beÃ©â€™ﬁ，＜＆Å酒�İß",
        "amp;",
        "lt;",
        "#8203;",
        "br",
        "<!--",
        "-->",
        "script",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join))


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("<" * 30 + "b>" * 30)
@example("&" + "amp;" * 40 + "lt;b&gt;")
def test_idempotent_and_tidy(text):
    for clean in (ALL, COMPATIBLE):
        once = clean(text)
        assert clean(once) == once
        assert once == " ".join(once.split())
        assert not any(unicodedata.category(character) == "Cc" for character in once)
    assert unicodedata.is_normalized("NFC", ALL(text))


UNSEEN_PIECES = [
    "<!--",
    "-->",
    "<script>",
    "<SCRIPT x>",
    "</script >",
    "</Script",
    "<style>",
    "</style>",
    "<",
    ">",
    "x",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(UNSEEN_PIECES), max_size=12).map("".join))
@example("<script>a</style><style>b</script>c</STYLE>d<script>")
@example("<!--><!-- --><script>--></script>")
def test_unseen_markup_goes_as_its_pattern_says(text):
    assert normalise._strip_unseen(text) == normalise._UNSEEN.sub(" ", text)


def test_the_end_of_unseen_markup_is_looked_for_once_a_kind(monkeypatch):
    unseen = Mock(wraps=normalise._UNSEEN)
    monkeypatch.setattr(normalise, "_UNSEEN", unseen)
    text = "<!--<script><STYLE>" * 1000
    assert normalise._strip_unseen(text) == text
    assert unseen.match.call_count == 3


@pytest.mark.parametrize("text", ["&" + "amp;" * 1000, "<" * 1000 + "b>" * 1000], ids=["escaped", "nested"])
def test_rounds_are_few_however_deep_the_markup(monkeypatch, text):
    unescape = Mock(wraps=normalise.unescape_html)
    monkeypatch.setattr(normalise, "unescape_html", unescape)
    ALL(text)
    assert unescape.call_count <= normalise._MAX_ROUNDS**2


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "piece",
    ["<!--", "<script>", "<style>", "<a ", "<p/", "&lt;", "</script ", "<!-- -->", '<a b="', " b=\"<a c='", "<a b=c "],
)
def test_a_long_text_of_broken_markup(piece):
    once = ALL(piece * (400_000 // len(piece)))
    assert ALL(once) == once


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_texts_passed_over_have_no_mojibake(text):
    if not _MAY_BE_MOJIBAKE.search(text):
        assert ftfy.fix_encoding(text) == text


def test_every_sign_of_mojibake_is_looked_for():
    signs = {character for character in BADNESS_RE.pattern if not character.isascii()}
    assert len(signs) > 100
    assert {character for character in signs if not _MAY_BE_MOJIBAKE.match(character)} == set()
    ranges = re.findall(r"(.)-(.)", BADNESS_RE.pattern)
    for first, last in ranges:
        if ord(last) > 127:
            assert all(_MAY_BE_MOJIBAKE.match(chr(code)) for code in range(max(128, ord(first)), ord(last) + 1))


def test_comparable():
    assert comparable("  Hotel-Inform\n(AREA) ") == "hotel-inform (area)"
    assert comparable("ＨＯＴＥＬ　Straße") == "hotel strasse"
    assert comparable("É") == comparable("e\u0301") == "é"


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_comparable_is_idempotent_and_blind_to_case(text):
    assert comparable(comparable(text)) == comparable(text)
    assert comparable(text.casefold()) == comparable(text)
