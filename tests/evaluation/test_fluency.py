import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from stages.evaluation.fluency import NGramModel, distinct, repetition, tokenizer

TRAINING = [
    line.split()
    for line in [
        "the hotel is in the north",
        "the hotel is cheap",
        "the hotel is in the centre of town",
        "a cheap hotel in the north",
        "it is in the north",
        "it is cheap",
        "bye",
        "",
    ]
]


class Plain:
    """Interpolated Kneser-Ney as the equations have it, in dictionaries, one word at a time."""

    def __init__(self, texts, order):
        self.order = order
        self.vocabulary = {word for text in texts for word in text} | {"</s>", "<unk>"}
        seen = defaultdict(Counter)
        for text in texts:
            line = ["<s>"] * (order - 1) + text + ["</s>"]
            for i in range(order - 1, len(line)):
                for n in range(1, order + 1):
                    seen[n][tuple(line[i - n + 1 : i + 1])] += 1
        self.counts = {}
        for n in range(1, order + 1):
            before = Counter(gram[1:] for gram in seen[n + 1])
            keep = n == order
            self.counts[n] = {g: c if keep or g[0] == "<s>" else before[g] for g, c in seen[n].items()}
        self.discounts = {}
        for n, counts in self.counts.items():
            once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
            self.discounts[n] = once / (once + 2 * twice) if once and twice else 0.5

    def probability(self, word, context):
        context = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        return self._at(word, context)

    def _at(self, word, context):
        n = len(context) + 1
        lower = 1 / len(self.vocabulary) if n == 1 else self._at(word, context[1:])
        following = {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == context}
        if not following:
            return lower
        discount, total = self.discounts[n], sum(following.values())
        return (max(following.get(word, 0) - discount, 0) + discount * len(following) * lower) / total


@pytest.mark.parametrize("training", [TRAINING, [["the", "hotel"]], [["the"]] * 4], ids=["texts", "one", "equal"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_are_those_of_the_equations(order, training):
    model, plain = NGramModel(training, order), Plain(training, order)
    texts = [["the", "hotel", "is", "cheap"], ["hotel", "dragon", "is"], [], ["north", "in", "the", "north", "bye"]]
    draw = random.Random(0)
    words = [*sorted({word for text in TRAINING for word in text}), "dragon"]
    texts += [draw.choices(words, k=8) for _ in range(100)]
    expected = []
    for text in texts:
        line = ["<s>"] * (order - 1) + [w if w in plain.vocabulary else "<unk>" for w in text] + ["</s>"]
        expected += [plain.probability(line[i], line[:i]) for i in range(order - 1, len(line))]
    np.testing.assert_allclose(np.exp(model.log_probabilities(texts)), expected, rtol=1e-12)
    assert model.perplexity(texts) == pytest.approx(math.exp(-np.log(expected).mean()))


@pytest.mark.parametrize("context", [[], ["the"], ["the", "hotel"], ["dragon", "is"], ["is", "dragon"]])
def test_probabilities_of_all_next_words_sum_to_one(context):
    model = NGramModel(TRAINING, 3)
    words = sorted({word for text in TRAINING for word in text})
    following = [[*context, word] for word in [*words, "never-seen"]]
    at_word = [model.log_probabilities([text])[len(context)] for text in following]
    ending = model.log_probabilities([context])[len(context)]
    assert np.exp([*at_word, ending]).sum() == pytest.approx(1)


def test_fluent_text_is_less_perplexing_than_a_jumble():
    model = NGramModel(TRAINING, 3)
    assert model.perplexity([["it", "is", "in", "the", "centre"]]) < model.perplexity([["centre", "in", "is", "it"]])


def test_one_training_text_gives_a_proper_model():
    assert math.isfinite(NGramModel([["a"]], 3).perplexity([["b", "a"], []]))


def test_english_tokens_keep_contractions_and_placeholders_whole():
    tokens = tokenizer("en", "#[A-Z]+(?:-[A-Z]+)+#")
    assert tokens("It's #HOTEL-NAME# , isn't it?!") == ["It's", "#HOTEL-NAME#", ",", "isn't", "it", "?", "!"]
    assert tokenizer("en", None)("#A-B#") == ["#", "A", "-", "B", "#"]


def test_chinese_tokens_are_characters():
    tokens = tokenizer("zh", r"\[[^\]]+\]")
    assert tokens("在[Inform+酒店]，120 元") == ["在", "[Inform+酒店]", "，", "120", "元"]


def test_placeholder_with_groups_is_one_token():
    assert tokenizer("en", "(#)([A-Z]+)(#)")("at #X#") == ["at", "#X#"]


def test_repetition():
    assert repetition([["a", "b", "a", "b", "a"]]) == pytest.approx(1 - 2 / 4)
    assert repetition([["a", "b", "c"], ["a"], []]) == 0
    assert repetition([["a"] * 11, ["a", "b"]]) == pytest.approx((1 - 1 / 10) / 2)


def test_distinct():
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == pytest.approx(2 / 5)
    assert distinct(texts, 2) == pytest.approx(2 / 3)
    assert distinct([[]], 1) == 0
