"""Why a row is rejected, and the checks that look at one row alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from stages.errors import UserError
from stages.params import Clean

REASONS = {
    "malformed": "more or fewer cells than the header has columns",
    "source_not_text": "a JSON list, object or boolean",
    "target_not_text": "a JSON list, object or boolean",
    "source_empty": "nothing left after normalising",
    "target_empty": "nothing left after normalising",
    "source_too_short": "below clean.min_characters",
    "target_too_short": "below clean.min_characters",
    "source_too_long": "above clean.max_source_characters",
    "target_too_long": "above clean.max_target_characters",
    "target_language": "taken for another language than clean.language_filter",
    "input_in_other_split": "its input is in a ready-made test or validation split too, and stays there",
    "duplicate": "source and target equal an earlier row's",
    "near_duplicate": "source and target are at least clean.near_duplicates similar to an earlier row's",
}
"""Every reason that `rejected.parquet` gives, and what it means; the first that applies is given."""


@dataclass(frozen=True)
class Filter:
    """The bounds of `clean` in params.yaml. Characters are Unicode code points."""

    min_characters: int
    max_source_characters: int
    max_target_characters: int
    language_filter: str | None

    @classmethod
    def of(cls, clean: Clean) -> Filter:
        """The filter that params.yaml describes.

        Raises:
            UserError: the language filter knows no such language.
        """
        if clean.language_filter is not None:
            known = sorted(_identifier().labels)
            if clean.language_filter not in known:
                raise UserError(f"clean.language_filter is {clean.language_filter!r}; known: {', '.join(known)}")
        return cls(**{name: getattr(clean, name) for name in cls.__dataclass_fields__})

    def __call__(self, source: str, target: str) -> str | None:
        """The reason to reject a normalised pair, or None to keep it."""
        if not source:
            return "source_empty"
        if not target:
            return "target_empty"
        if len(source) < self.min_characters:
            return "source_too_short"
        if len(target) < self.min_characters:
            return "target_too_short"
        if len(source) > self.max_source_characters:
            return "source_too_long"
        if len(target) > self.max_target_characters:
            return "target_too_long"
        if self.language_filter is not None and _identifier().classify(target)[0] != self.language_filter:
            return "target_language"
        return None


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
