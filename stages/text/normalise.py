"""Making a text clean without changing what it says."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

import ftfy
from ftfy.fixes import unescape_html

from stages.params import Clean

# ftfy's test for mojibake takes longer than everything else here, and can only succeed on a text with one of
# these: every sign of mojibake it knows lies here. Chinese, Japanese and Korean letters do not.
_MAY_BE_MOJIBAKE = re.compile("[\x80-\u2fff\uf8ff\ufb01\ufb02\ufffd]")

# White space among the control characters (form feed, the separators U+001C to U+001F, U+0085) divides words.
_DIVIDING_CONTROL = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
# Control characters, soft hyphen, zero-width space and no-break space, direction marks, interlinear marks, and
# what can never be a character. The joiners U+200C and U+200D are left: Persian, Indic scripts and emoji need them.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff]"
)

# Only tags that a text picks up on its way through a web page. A delexicalised <name>, <address> or <time> is
# text, although the last two are HTML as well. What follows a tag's name has to be attributes: "a <b and c> d" is
# text. Their number and length are bounded: a text of broken tags takes no time in the square of its length.
_FLAG = (
    "async|checked|compact|defer|disabled|download|hidden|ismap|nomodule|noshade|novalidate|nowrap|reversed|selected"
)
_ATTRIBUTE = (
    r"""\s++(?:[a-z_:@][\w:.@-]{0,99}\s*+=\s*+(?:"[^"]{0,4999}"|'[^']{0,4999}'|[^\s"'<>=`]{1,4999}+)"""
    rf"|(?:{_FLAG})(?=[\s/>]))"
)
_REST = rf"(?:{_ATTRIBUTE}){{0,50}}\s*+/?>"
_UNSEEN_START = re.compile(r"<!--|<(script|style)\b[^<>]*>", re.IGNORECASE)
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_INLINE = re.compile(
    r"</?(?:a|abbr|b|big|cite|code|del|em|font|i|img|ins|kbd|mark|nobr|s|small|span|strike|strong|sub|sup|tt|u)"
    + _REST,
    re.IGNORECASE,
)
_BLOCK = re.compile(
    r"</?(?:blockquote|body|br|center|dd|div|dl|dt|h[1-6]|head|hr|html|li|ol|p|pre|script|style|table|tbody|td"
    r"|tfoot|th|thead|tr|ul)" + _REST,
    re.IGNORECASE,
)

# What one step uncovers another may have to treat: "&#8203;" is a tag's remnant, then a zero-width space. Real
# texts settle in two rounds. The bound keeps the time linear in the length, for texts such as "&amp;amp;amp;…".
_MAX_ROUNDS = 10


@dataclass(frozen=True)
class Normaliser:
    """The cleaning of one text; the steps are those of `clean` in params.yaml.

    Applying it to its own result changes nothing, unless markup is nested a hundred deep.
    """

    repair_encoding: bool
    unicode_form: Literal["NFC", "NFKC"] | None
    strip_control: bool
    strip_html: bool
    collapse_whitespace: bool

    @classmethod
    def of(cls, clean: Clean) -> Normaliser:
        """The normaliser that params.yaml describes."""
        return cls(**{name: getattr(clean, name) for name in cls.__dataclass_fields__})

    def __call__(self, text: str) -> str:
        """The cleaned text."""
        for _ in range(_MAX_ROUNDS):
            before, text = text, self._once(text)
            if text == before:
                break
        return text

    def _once(self, text: str) -> str:
        if self.repair_encoding and _MAY_BE_MOJIBAKE.search(text):
            text = ftfy.fix_encoding(text)
        if self.strip_html:
            text = strip_html(text)
        if self.strip_control:
            text = strip_control(text)
        if self.unicode_form is not None and not text.isascii():
            text = unicodedata.normalize(self.unicode_form, text)
        if self.collapse_whitespace:
            text = " ".join(text.split())
        return text


def strip_html(text: str) -> str:
    """Replace entities by what they stand for, and remove comments, scripts and the tags of running text.

    A tag that ends a line or a cell leaves a space. What is nested or escaped over ten deep keeps the outer levels.
    """
    for _ in range(_MAX_ROUNDS):
        if "&" not in text and "<" not in text:
            break
        before = text
        text = unescape_html(text)
        text = _BLOCK.sub(" ", _INLINE.sub("", _strip_unseen(text)))
        if text == before:
            break
    return text


def _strip_unseen(text: str) -> str:
    """`_UNSEEN.sub(" ", text)`, without looking for an end again from every start that has none."""
    kept, at = [], 0
    without_end = set()
    for start in _UNSEEN_START.finditer(text):
        kind = (start[1] or "").lower()
        if start.start() < at or kind in without_end:
            continue
        unseen = _UNSEEN.match(text, start.start())
        if unseen is None:
            without_end.add(kind)
        else:
            kept.append(text[at : unseen.start()])
            at = unseen.end()
    return " ".join([*kept, text[at:]])


def strip_control(text: str) -> str:
    """Remove control and zero-width characters; those that are white space become a space."""
    return _CONTROL.sub("", _DIVIDING_CONTROL.sub(" ", text))


def comparable(text: str) -> str:
    """The text without differences that do not make it another input: width, case, and white space."""
    if text.isascii():
        return " ".join(text.lower().split())
    # Casefolding can undo a normalisation and the other way round, hence both twice (Unicode, definition D147).
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split())
