"""Which pairs are rejected, and the one reason that is given."""

from __future__ import annotations

import pytest

from stages.errors import UserError
from stages.text.filtering import REASONS, Filter

BOUNDED = Filter(min_characters=2, max_source_characters=5, max_target_characters=8, language_filter=None)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("ab", "ab", None),
        ("abcde", "abcdefgh", None),
        ("", "", "source_empty"),
        ("ab", "", "target_empty"),
        ("a", "ab", "source_too_short"),
        ("ab", "a", "target_too_short"),
        ("abcdef", "a" * 9, "source_too_long"),
        ("abcde", "a" * 9, "target_too_long"),
        ("五个字的文", "八个汉字不是字节", None),
        ("六个汉字太长", "好的", "source_too_long"),
    ],
)
def test_bounds_in_characters(source, target, reason):
    assert BOUNDED(source, target) == reason
    assert reason is None or reason in REASONS


def test_language_of_the_target(settings):
    english = Filter.of(settings(clean={"language_filter": "en"}).clean)
    chinese = Filter.of(settings(clean={"language_filter": "zh"}).clean)
    sentences = [
        "There are several restaurants in the centre of town that serve good food.",
        "您好，为您推荐这家酒店，评分很高，价格也不贵。",
        "Il y a plusieurs restaurants dans le centre de la ville qui sont ouverts.",
    ]
    assert [english("x", text) for text in sentences] == [None, "target_language", "target_language"]
    assert [chinese("x", text) for text in sentences] == ["target_language", None, "target_language"]


def test_unknown_language(settings):
    with pytest.raises(UserError, match=r"clean\.language_filter is 'english'; known: .*\ben\b"):
        Filter.of(settings(clean={"language_filter": "english"}).clean)
