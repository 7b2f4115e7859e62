"""A pruned generator of any family is a plain checkpoint: `transformers` alone loads it, and says the same."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from shared import FAMILIES, SOURCES, TARGETS

from stages.models import anatomy, checkpoint
from stages.pruning import criterion, engine, masks
from stages.pruning.structure.choice import choose, cost
from stages.pruning.structure.removal import shrink

TOKENS = 12
ELSEWHERE = """
import json, sys

sys.modules["stages"] = None  # what is installed for development is found from anywhere
try:
    import stages
except ModuleNotFoundError:
    pass
else:
    sys.exit("this project can be imported")

import torch
import transformers

torch.set_num_threads(1)
answers = []
for folder, texts, tokens in json.load(sys.stdin):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers.append([])
    for text in texts:
        ids = tokenizer(text).input_ids
        if not config.is_encoder_decoder:
            ids += tokenizer("\\n", add_special_tokens=False).input_ids
        ids = torch.tensor([ids])
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens)
        answers[-1].append(output[0].tolist())
json.dump(answers, sys.stdout)
"""


def pruned(generator, method, settings):
    """A smaller generator by `structured`; else half of the eligible weights of this one are set to zero."""
    rules, found = settings().prune, criterion.find(method)
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    described = anatomy.describe(generator.model)
    context = criterion.Context(generator.model, described.matrices, lambda: [batch], 0, getattr(rules, method))
    if found.structure:
        return shrink(generator, choose(context, cost(context) * 0.6)), None
    chosen = engine.choose(context, found, 0.5, rules)
    masks.apply(described.weights, chosen)
    return generator, chosen


def tokens_of(generator) -> list[list[int]]:
    options = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    with torch.inference_mode():
        return [generator.model.generate(**generator.prompts([text]), **options)[0].tolist() for text in SOURCES]


def tokens_elsewhere(folders, cwd) -> list[list[list[int]]]:
    """Tokens of each folder's answers, from a process that cannot import this project."""
    asked = json.dumps([(str(folder), SOURCES, TOKENS) for folder in folders])
    command = (sys.executable, "-I", "-c", ELSEWHERE)
    done = subprocess.run(command, input=asked, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tokens_are_the_same_without_this_project(restless, settings, tmp_path):
    expected = {}
    for family in FAMILIES:
        dense = tokens_of(restless(family))
        for method in ("magnitude", "structured"):
            generator, held = pruned(restless(family), method, settings)
            checkpoint.save(generator, tmp_path / family / method, masks=held)
            expected[f"{family}/{method}"] = tokens_of(generator)
            assert expected[f"{family}/{method}"] != dense
        assert len({tuple(tokens) for tokens in dense}) > 1  # whose answers are all alike would tell nothing
    answers = tokens_elsewhere([tmp_path / case for case in expected], tmp_path)
    for (case, tokens), answer in zip(expected.items(), answers, strict=True):
        assert answer == tokens, case
