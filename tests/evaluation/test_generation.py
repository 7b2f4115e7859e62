import itertools

import pytest
import torch

from stages import params
from stages.evaluation import generation
from stages.evaluation.generation import decoding, generate, generate_batch, stream

pytest_plugins = ["evaluation_fixtures"]

TEXTS = ["bye", "inform ( name , area )", "request ( food )", "  ", "inform ( area )", "你好 ( 名称 )", "a", "bye"]
GREEDY = {"num_beams": 1, "do_sample": False}
SAMPLE = {"num_beams": 1, "do_sample": True, "top_k": 0}


def run(generator, texts, options=GREEDY, batch_size=3, seed=0):
    return generate(generator, texts, batch_size=batch_size, seed=seed, options=options)


def test_outputs_come_back_in_the_order_of_the_inputs(generator):
    outputs = run(generator, TEXTS)
    alone = [generate_batch(generator, [text], GREEDY)[0] if text.strip() else "" for text in TEXTS]
    assert outputs == alone
    assert len(set(outputs)) > 3  # or the order could not show


def test_beam_search_finds_likelier_outputs_than_greedy(make_generator):
    generator = make_generator("bert")
    beam = run(generator, TEXTS, {"num_beams": 4, "do_sample": False, "length_penalty": 0.0})
    assert beam != run(generator, TEXTS)

    def likelihood(outputs):
        pairs = generator.encode(TEXTS, outputs)
        with torch.inference_mode():
            losses = [generator.model(**generator.collate([p])).loss * len(p["labels"]) for p in pairs]
        return -sum(losses)

    assert likelihood(beam) > likelihood(run(generator, TEXTS))


def test_sampling_is_decided_by_the_seed_and_not_by_what_ran_before(make_generator):
    generator = make_generator("bert")
    first = run(generator, TEXTS, SAMPLE, seed=1)
    torch.rand(5)
    assert run(generator, TEXTS, SAMPLE, seed=1) == first
    assert run(generator, TEXTS, SAMPLE, seed=2) != first
    # A batch draws as it would by itself: here the three longest texts.
    longest = sorted(range(len(TEXTS)), key=lambda i: -len(TEXTS[i]))[:3]
    assert run(generator, [TEXTS[i] for i in longest], SAMPLE, seed=1) == [first[i] for i in longest]


def test_one_text_many_times_is_sampled_anew_in_every_row_batch_and_window(make_generator, monkeypatch):
    monkeypatch.setattr(generation, "WINDOW", 2)
    results = stream(make_generator("bert"), ["bye"] * 12, batch_size=2, seed=0, options=SAMPLE)
    assert len({output for _, output in results}) == 12


def test_nothing_and_blank_texts(make_generator):
    generator = make_generator("bert")
    assert run(generator, []) == []
    assert run(generator, ["", " \t"]) == ["", ""]


def test_progress_counts_every_text_once(make_generator):
    counted = []
    generate(make_generator("bert"), TEXTS, batch_size=3, seed=0, options=GREEDY, done=counted.append)
    assert counted == [1, 3, 3, 1]


def test_stream_gives_the_same_in_order_and_reads_no_further_than_its_window(make_generator, monkeypatch):
    monkeypatch.setattr(generation, "WINDOW", 2)
    generator = make_generator("bert")
    read = 0

    def texts():
        nonlocal read
        for text in itertools.cycle(TEXTS):
            read += 1
            yield text

    results = stream(generator, texts(), batch_size=2, seed=0, options=GREEDY)
    first = [next(results) for _ in range(4)]
    assert read == 4
    first += [next(results) for _ in range(6)]
    assert read == 12
    expected = dict(zip(TEXTS, run(generator, TEXTS), strict=True))
    assert first == [(text, expected[text]) for text in (TEXTS + TEXTS)[:10]]


@pytest.mark.parametrize("options", [{"max_new_tokens": 3}, {}])
def test_length_is_the_generators_unless_said_otherwise(make_generator, options):
    generator = make_generator("bert")
    lengths = []
    decode = generator.tokenizer.batch_decode
    generator.tokenizer.batch_decode = lambda ids, **kw: lengths.append(ids.shape[1]) or decode(ids, **kw)
    generator.model.generation_config.eos_token_id = None
    generate_batch(generator, ["bye"], {**GREEDY, **options})
    assert lengths == [1 + options.get("max_new_tokens", generator.max_target_tokens)]


def test_decoding_takes_what_the_params_say(settings):
    evaluate = settings().evaluate
    assert decoding(evaluate) == {"num_beams": 1, "do_sample": False, "repetition_penalty": 1.0}
    changed = settings(evaluate={"num_beams": 4, "do_sample": True, "top_k": 5, "length_penalty": 0.5}).evaluate
    assert isinstance(changed, params.Evaluate)
    assert decoding(changed) == {
        "num_beams": 4,
        "do_sample": True,
        "repetition_penalty": 1.0,
        "length_penalty": 0.5,
        "temperature": 1.0,
        "top_k": 5,
        "top_p": 1.0,
    }
