"""`python -m stages.generate` as a person runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import generate, layout
from stages.evaluation import generation
from stages.files import write_json
from stages.models import checkpoint

pytest_plugins = ["evaluation_fixtures"]

ROOT = Path(__file__).parents[2]
TEXTS = ["inform ( name )", "", "bye", "你好 ( 名称 )", "request ( food , area )"]


@pytest.fixture
def model(tmp_path, monkeypatch, make_generator) -> str:
    """A folder to work in, with the checkpoint of a level."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(make_generator("bert"), layout.model_folder("magnitude-0.5"))
    return "magnitude-0.5"


def run(capfdbinary, *arguments: str) -> list[dict]:
    generate.main(list(arguments))
    return [json.loads(line) for line in capfdbinary.readouterr().out.decode().splitlines()]


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def stops(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        generate.main(list(arguments))
    assert stopped.value.code in (1, 2)
    return capsys.readouterr().err


def test_texts_of_the_command_line_come_back_in_order(model, capfdbinary):
    given = [part for text in TEXTS for part in ("--text", text)]
    records = run(capfdbinary, "--model", model, *given, "--batch-size", "2")
    assert [record["input"] for record in records] == TEXTS
    assert records[1]["output"] == ""
    assert len({record["output"] for record in records}) > 3
    by_folder = run(capfdbinary, "--model", str(layout.model_folder(model)), *given)
    assert by_folder == records


def test_the_level_that_compare_chose(model, capfdbinary):
    write_json(layout.CHOSEN_FILE, {"key": model, "why": "it is small"})
    given = ["--text", "inform ( name )"]
    assert run(capfdbinary, "--model", "chosen", *given) == run(capfdbinary, "--model", model, *given)


def test_no_level_was_chosen(model, capsys):
    write_json(layout.CHOSEN_FILE, {"key": None, "why": "bleu falls below 99 %. Raise target.max_drop."})
    shown = stops(capsys, "--model", "chosen", "--text", "a")
    assert "no level is chosen: bleu falls below 99 %. Raise target.max_drop; name one" in shown


def test_file_to_file(model, capfdbinary):
    Path("texts.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode())
    assert run(capfdbinary, "--model", model, "--input", "texts.txt", "--output", "new/out.jsonl") == []
    lines = Path("new/out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["input"] for line in lines] == TEXTS
    assert "你好" in lines[3]  # readable, not escaped
    assert names("new") == ["out.jsonl"]


def test_decoding_flags_override_the_checkpoint(model, capfdbinary):
    greedy = run(capfdbinary, "--model", model, "--text", "bye")
    short = run(capfdbinary, "--model", model, "--text", "bye", "--max-new-tokens", "2")
    assert short[0]["output"] != greedy[0]["output"]
    assert greedy[0]["output"].startswith(short[0]["output"].rstrip("\ufffd"))
    sampled = [run(capfdbinary, "--model", model, "--text", "bye", "--do-sample", "--seed", s) for s in "112"]
    assert sampled[0] == sampled[1] != sampled[2]
    assert run(capfdbinary, "--model", model, "--text", "bye", "--num-beams", "3")[0]["output"]


def test_checkpoints_own_decoding_is_the_default(model, capfdbinary):
    path = layout.model_folder(model) / "generation_config.json"
    config = json.loads(path.read_text())
    beams = run(capfdbinary, "--model", model, "--text", "request ( food )", "--num-beams", "3")
    path.write_text(json.dumps(config | {"num_beams": 3}))
    assert run(capfdbinary, "--model", model, "--text", "request ( food )") == beams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "nope", "--text", "a"],
            "nope: no such checkpoint; give a folder, or one of magnitude-0.5",
        ),
        (["--model", "magnitude-0.5", "--input", "absent"], "cannot read absent: No such file"),
        (["--model", "magnitude-0.5", "--input", "."], "cannot read .: Is a directory"),
        (["--model", "magnitude-0.5", "--text", "a", "--output", "outputs"], "--output outputs is not a file"),
        (["--model", "magnitude-0.5", "--text", "a", "--output", "/dev/null"], "--output /dev/null is not a file"),
        (["--model", "magnitude-0.5", "--text", "a", "--top-k", "3"], "--top-k is of sampling: add --do-sample"),
        (["--model", "magnitude-0.5", "--text", "a", "--max-new-tokens", "99"], "was trained to write at most 30"),
        (["--model", "magnitude-0.5", "--text", "\udcff"], "--text is not valid UTF-8"),
        (["--model", "magnitude-0.5", "--text", "a", "--num-beams", "0"], "argument --num-beams: must be at least 1"),
        (["--model", "magnitude-0.5", "--text", "a", "--batch-size", "x"], "invalid whole number value: 'x'"),
        (
            ["--model", "magnitude-0.5", "--text", "a", "--num-beams", "1" + "0" * 30],
            "--num-beams: must be at least 1 and",
        ),
        (["--model", "magnitude-0.5", "--text", "a", "--batch-size", "1" + "0" * 30], "at most 1000000"),
        (["--model", "magnitude-0.5", "--text", "a", "--do-sample", "--top-p", "2"], "at least 0.001 and at most 1"),
        (["--model", "magnitude-0.5", "--text", "a", "--do-sample", "--temperature", "1e-40"], "at least 0.001 and"),
        (["--model", "magnitude-0.5", "--text", "a", "--do-sample", "--temperature", "inf"], "and at most 1000"),
        (["--model", "magnitude-0.5", "--text", "a", "--repetition-penalty", "1e-40"], "at least 0.001 and"),
        (
            ["--model", "magnitude-0.5", "--text", "a", "--num-beams", "2", "--length-penalty", "nan"],
            "at least -10 and",
        ),
        (["--model", "magnitude-0.5", "--text", "a", "--num-beams", "2", "--length-penalty", "1e3"], "at most 10"),
        (["--model", "magnitude-0.5", "--text", "a", "--output", "texts.txt/x/y"], "texts.txt is not a folder"),
        (["--model", "magnitude-0.5", "--text", "a", "--output", "x" * 300], "xxx: File name too long"),
        (["--model", "magnitude-0.5", "--text", "a", "--output", "x" * 250], "xxx: File name too long"),
        (["--model", "magnitude-0.5", "--input", "texts.txt/x"], "cannot read texts.txt/x: Not a directory"),
        (["--model", "x" * 300, "--text", "a"], "xxx: File name too long"),
    ],
)
def test_mistakes_end_in_one_line(model, capsys, arguments, message):
    Path("texts.txt").write_text("bye\n")
    shown = stops(capsys, *arguments)
    assert message in shown
    assert "Traceback" not in shown
    assert Path("outputs").is_dir()


def test_extremes_that_flags_allow_work(model, capfdbinary):
    for flag, values in {"--temperature": ("0.001", "1000"), "--repetition-penalty": ("0.001", "1000")}.items():
        for value in values:
            assert run(capfdbinary, "--model", model, "--text", "bye", "--do-sample", flag, value)
    for value in ("-10", "10"):
        assert run(capfdbinary, "--model", model, "--text", "bye", "--num-beams", "2", "--length-penalty", value)
    assert run(capfdbinary, "--model", model, "--text", "bye", "--do-sample", "--top-k", "1" + "0" * 30)
    assert run(capfdbinary, "--model", model, "--text", "bye", "--batch-size", "1000000")


@pytest.mark.parametrize(("stream", "message"), [("stdin", "--text or --input"), ("stdout", "give --output")])
def test_closed_streams_end_in_one_line(stream, message, model, capsys, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    arguments = [] if stream == "stdin" else ["--text", "bye"]
    assert message in stops(capsys, "--model", model, *arguments)


def change_decoding(model: str, **changes) -> Path:
    """Change what a checkpoint says of decoding; returns the file that says it."""
    path = layout.model_folder(model) / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_decoding_that_does_not_work_names_the_checkpoints_file(model, capsys):
    path = change_decoding(model, do_sample=True, temperature=0.0)
    shown = stops(capsys, "--model", model, "--text", "bye")
    assert f"cannot generate with these flags and {path}: `temperature` (=0.0)" in shown and shown.count("\n") == 1


def test_a_text_has_one_output_whatever_the_checkpoint_says(model, capfdbinary):
    change_decoding(model, num_beams=2, num_return_sequences=2)
    assert len(run(capfdbinary, "--model", model, "--text", "bye")) == 1


def test_short_memory_says_what_to_lower(model, capsys, monkeypatch):
    def for_one(generator, texts, options) -> list[str]:
        if len(texts) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return [""]

    monkeypatch.setattr(generation, "generate_batch", for_one)
    Path("out.jsonl").write_text("old\n")
    shown = stops(capsys, "--model", model, "--text", "a", "--text", "b", "--output", "out.jsonl")
    assert "lower --batch-size or --num-beams" in shown and shown.count("\n") == 1
    assert Path("out.jsonl").read_text() == "old\n"


def test_wrong_encoding_names_the_line_and_keeps_the_old_output(model, capsys):
    Path("texts.txt").write_bytes(b"bye\n\xff\xfe\n")
    Path("out.jsonl").write_text("old\n")
    shown = stops(capsys, "--model", model, "--input", "texts.txt", "--output", "out.jsonl")
    assert shown == "error: texts.txt, line 2 is not UTF-8: convert it, perhaps with iconv\n"
    assert Path("out.jsonl").read_text() == "old\n"
    assert names(".") == ["out.jsonl", "outputs", "texts.txt"]


def test_pickled_and_damaged_checkpoints_are_refused(model, capsys):
    folder = layout.model_folder(model)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    assert stops(capsys, "--model", model, "--text", "a").startswith(f"error: cannot read {folder}: ")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights (pytorch_model.bin)" in stops(capsys, "--model", model, "--text", "a")


def start(*arguments: str, **streams) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "stages.generate", "--model", "magnitude-0.5", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **streams)


@pytest.mark.timeout(300)
def test_standard_input_to_a_reader_that_leaves(model):
    process = start("--batch-size", "1", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    window = "bye\n" * generation.WINDOW
    process.stdin.write(window)
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["input"] == "bye"  # while more may come
    process.stdout.close()
    process.stdin.write(window)
    process.stdin.close()
    assert process.wait(timeout=200) == 141  # as of a command that SIGPIPE ended
    assert process.stderr.read() == ""


def test_interrupted_run_leaves_no_output(model):
    Path("texts.txt").write_text("inform ( name )\n" * 200_000)
    process = start("--input", "texts.txt", "--output", "out.jsonl")
    deadline = time.monotonic() + 200
    while not list(Path().glob(".out.jsonl.*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=200) == 130
    assert process.stderr.read().startswith("interrupted")
    assert names(".") == ["outputs", "texts.txt"]
