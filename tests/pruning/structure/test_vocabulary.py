"""A generator without the tokens it never sees says what it said before."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import tempfile

import pytest
import sentencepiece
import torch
from shared import FAMILIES, SOURCES, TARGETS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MarianTokenizer, PreTrainedTokenizerFast

from stages.errors import UserError
from stages.models import checkpoint
from stages.models.checkpoint import Generator
from stages.pruning.structure.vocabulary import seen, trim

MORE = ["there are words that nobody here will ever say", "zebra crossing", "quixotic jazz", "再见 朋友 们"]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def generated(generator: Generator) -> list[list[str]]:
    """Tokens of a greedy answer to each text."""
    with torch.no_grad():
        found = generator.model.generate(**generator.prompts(SOURCES[:2]), max_new_tokens=8, do_sample=False)
    return [generator.tokenizer.convert_ids_to_tokens(ids) for ids in found.tolist()]


def logits(generator: Generator) -> torch.Tensor:
    batch = generator.collate(generator.encode(SOURCES[:2], TARGETS[:2]))
    with torch.no_grad():
        return generator.model(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_says_on_seen_text_is_the_same(family, built, tmp_path):
    generator = copy.deepcopy(built(family))
    generator.model.eval()
    said, before = generated(generator), logits(generator)
    spoken = {generator.tokenizer.convert_tokens_to_ids(token) for tokens in said for token in tokens}
    smaller = trim(generator, seen(generator, SOURCES[:2], TARGETS[:2]) | spoken)
    rows = checkpoint.sides(smaller.model)[0].get_input_embeddings().num_embeddings
    assert rows < checkpoint.sides(generator.model)[0].get_input_embeddings().num_embeddings
    assert len(smaller.tokenizer) == rows == len(smaller.tokenizer.get_vocab())
    text = [*SOURCES[:2], *TARGETS[:2]]
    pieces = [generator.tokenizer.convert_ids_to_tokens(i) for i in generator.tokenizer(text)["input_ids"]]
    assert [smaller.tokenizer.convert_ids_to_tokens(i) for i in smaller.tokenizer(text)["input_ids"]] == pieces
    names = smaller.tokenizer.convert_ids_to_tokens(list(range(rows)))
    columns = generator.tokenizer.convert_tokens_to_ids(names)
    assert torch.allclose(logits(smaller), before[..., columns], atol=1e-5)
    assert generated(smaller) == said
    checkpoint.save(smaller, tmp_path / "small")
    assert generated(checkpoint.load(tmp_path / "small")) == said
    assert generated(generator) == said


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    special = list(SPECIAL.values())
    if kind == "WordPiece":
        special[3] = "[UNK]"
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=special, show_progress=False)
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator([*SOURCES, *TARGETS, *MORE] * 4, trainer)
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    if kind == "BPE":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", end), ("<s>", start), add_prefix_space=False)
    else:
        special_ids = [("<s>", start), ("</s>", end)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special_ids)
    names = SPECIAL | ({"unk_token": "[UNK]"} if kind == "WordPiece" else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "BPE"])
def test_every_kind_of_tokenizer_splits_seen_text_as_before(kind, built):
    generator = copy.deepcopy(built("bart"))
    tokenizer = tokenizer_of(kind)
    generator.tokenizer = tokenizer
    generator.model.resize_token_embeddings(len(tokenizer))
    smaller = trim(generator, seen(generator, SOURCES, TARGETS))
    assert len(smaller.tokenizer) < len(tokenizer)
    for text in [*SOURCES, *TARGETS, "The food is in the area !"]:
        before = tokenizer(text)["input_ids"]
        after = smaller.tokenizer(text)["input_ids"]
        if text in (*SOURCES, *TARGETS):
            assert smaller.tokenizer.convert_ids_to_tokens(after) == tokenizer.convert_ids_to_tokens(before)
        assert smaller.tokenizer.decode(after, skip_special_tokens=True) == tokenizer.decode(
            before, skip_special_tokens=True
        )
    if kind == "BPE":  # bytes are all there: nothing is unknown
        text = "Žluťoučký 馬"
        assert smaller.tokenizer.decode(smaller.tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_other_words_are_spelled_by_letters_that_are_left(kind, built):
    generator = dataclasses.replace(built("bert"), tokenizer=tokenizer_of(kind))
    smaller = trim(generator, seen(generator, ["abide by"], ["made"]))
    words = ["amid", "bed bay"]
    assert {*"".join(words)} <= {*"abide by made"}
    unknown = smaller.tokenizer.unk_token_id
    assert not any(unknown in ids for ids in smaller.tokenizer(words, add_special_tokens=False)["input_ids"])
    assert unknown in smaller.tokenizer("quiz", add_special_tokens=False)["input_ids"]


def test_a_word_that_a_limit_cuts_is_split_as_before(built):
    whole = dataclasses.replace(built("bert"), tokenizer=tokenizer_of("WordPiece"))
    pairs = (first + second for first in MORE[0].split() for second in MORE[0].split())
    split = ((text, whole.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in pairs)
    text, pieces = next((text, ids) for text, ids in split if len(ids) > 2)
    short = dataclasses.replace(whole, max_source_tokens=2)
    smaller = trim(short, seen(short, [text], [""]))
    split = smaller.tokenizer(text, add_special_tokens=False)["input_ids"]
    names = smaller.tokenizer.convert_ids_to_tokens(split)
    assert names == whole.tokenizer.convert_ids_to_tokens(pieces)


def test_the_config_s_token_numbers_are_the_new_ones(built):
    generator = copy.deepcopy(built("bart"))
    end = generator.tokenizer.eos_token_id
    generator.model.generation_config.suppress_tokens = [end, max(generator.tokenizer.get_vocab().values())]
    generator.model.generation_config.bad_words_ids = [[end], [max(generator.tokenizer.get_vocab().values())]]
    smaller = trim(generator, seen(generator, SOURCES[:1], TARGETS[:1]))
    new = smaller.tokenizer.eos_token_id
    assert smaller.tokenizer.convert_ids_to_tokens(new) == generator.tokenizer.eos_token
    assert smaller.model.config.eos_token_id == smaller.model.generation_config.eos_token_id == new
    assert smaller.model.generation_config.suppress_tokens == [new]
    assert smaller.model.generation_config.bad_words_ids == [[new]]


def test_a_tokenizer_that_is_not_made_of_a_table_is_refused(built):
    class Slow:
        is_fast = False
        all_special_ids = ()

        def get_added_vocab(self):
            return {}

    generator = copy.deepcopy(built("bart"))
    generator.tokenizer = Slow()
    with pytest.raises(UserError, match="the vocabulary of a Slow cannot be trimmed"):
        trim(generator, {1, 2})


UNSEEN = "zebra quixotic"


@pytest.fixture(params=["unigram", "bpe"])
def marian(request, built, tmp_path) -> Generator:
    """A Marian with two SentencePiece models over one table, a piece of theirs that is not in it, and a placeholder."""
    models, pieces = [], ["</s>", "<unk>"]
    for side, texts in (("source", [*SOURCES, *MORE]), ("target", [*TARGETS, *MORE])):
        trained = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 8),
            model_writer=trained,
            vocab_size=100 if request.param == "unigram" else 150,
            model_type=request.param,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        models.append(tmp_path / f"{side}.spm")
        models[-1].write_bytes(trained.getvalue())
        read = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
        pieces += [read.id_to_piece(number) for number in range(3, read.get_piece_size())]
    outside = sentencepiece.SentencePieceProcessor(model_file=str(models[0])).encode("bye", out_type=str)[-1]
    pieces = [piece for piece in dict.fromkeys([*pieces, "<pad>"]) if piece != outside]
    table = {piece: number for number, piece in enumerate(pieces)}
    (tmp_path / "table.json").write_text(json.dumps(table))
    tokenizer = MarianTokenizer(str(models[0]), str(models[1]), str(tmp_path / "table.json"), model_max_length=64)
    tokenizer.add_tokens(["#ROOM#", "#NAME#"])
    found = copy.deepcopy(built("marian"))
    model = found.model
    model.resize_token_embeddings(len(tokenizer))
    for config in (model.config, model.generation_config):
        config.pad_token_id = config.decoder_start_token_id = table["<pad>"]
        config.eos_token_id = config.forced_eos_token_id = table["</s>"]
        config.bos_token_id = None
    torch.manual_seed(0)
    with torch.no_grad():
        model.final_logits_bias.normal_()
    return Generator(model.eval(), tokenizer, found.max_source_tokens, found.max_target_tokens)


def split(generator: Generator, **texts: str) -> list[str]:
    return generator.tokenizer.convert_ids_to_tokens(generator.tokenizer(**texts)["input_ids"])


def test_two_sentencepiece_models_split_seen_text_as_before(marian, tmp_path):
    said, before = generated(marian), logits(marian)
    spoken = {marian.tokenizer.convert_tokens_to_ids(token) for tokens in said for token in tokens}
    smaller = trim(marian, seen(marian, SOURCES, TARGETS) | spoken)
    checkpoint.save(smaller, tmp_path / "small")
    for trimmed in (smaller, checkpoint.load(tmp_path / "small")):
        rows = trimmed.model.config.vocab_size
        assert rows == len(trimmed.tokenizer.get_vocab()) == max(trimmed.tokenizer.get_vocab().values()) + 1
        assert rows < 0.8 * len(marian.tokenizer)
        for source, target in zip(SOURCES, TARGETS, strict=True):
            assert split(trimmed, text=source) == split(marian, text=source)
            assert trimmed.tokenizer.tokenize(source) == marian.tokenizer.tokenize(source)
            assert split(trimmed, text_target=target) == split(marian, text_target=target)
        assert split(trimmed, text="bye")[-2:] == ["<unk>", "</s>"], "unknown before, and so it stays"
        names = trimmed.tokenizer.convert_ids_to_tokens(list(range(rows)))
        columns = marian.tokenizer.convert_tokens_to_ids(names)
        assert {"#ROOM#", "#NAME#", "<pad>", "</s>", "<unk>"} <= set(names)
        torch.testing.assert_close(logits(trimmed), before[..., columns], atol=1e-5, rtol=1e-5)
        assert generated(trimmed) == said
        texts = trimmed.tokenizer(text_target=TARGETS)["input_ids"]
        whole = marian.tokenizer(text_target=TARGETS)["input_ids"]
        assert trimmed.tokenizer.batch_decode(texts) == marian.tokenizer.batch_decode(whole)
        known = set(trimmed.tokenizer.get_vocab())
        assert set(split(trimmed, text=UNSEEN)) <= known and not set(split(marian, text=UNSEEN)) <= known
    assert generated(marian) == said
    for folder in ("again", "small"):
        checkpoint.save(trim(marian, seen(marian, SOURCES, TARGETS) | spoken), tmp_path / folder)
    files = {file.name: file.read_bytes() for file in (tmp_path / "small").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert str(tempfile.gettempdir()).encode() not in b"".join(
        content for name, content in files.items() if name.endswith(".json")
    )


def test_a_table_for_each_side_is_refused(marian):
    marian.tokenizer.separate_vocabs = True
    with pytest.raises(UserError, match="a table for each side cannot be trimmed"):
        trim(marian, {1, 2})
