"""Outputs are replaced whole or not at all; errors end in one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors import SafetensorError

from stages.errors import UserError, command
from stages.files import digest, read_json, replacing, scratch_folder, write_json


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "a" / "m.json", {"é": 1})
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a" / "m.json") as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert read_json(tmp_path / "a" / "m.json") == {"é": 1}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["m.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with replacing(tmp_path / "out") as partial:
            partial.mkdir()
            (partial / text).write_text(text)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["two"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("before")

    def fails(self: Path, other: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output error"), replacing(target) as partial:
        partial.mkdir()
    assert (target / "a").read_text() == "before" and list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = int(ended.stdout), os.getppid()
    for name in (f".out.{dead}.partial", f".out.{alive}.partial", f".other.{dead}.partial", ".out.mine.partial"):
        (tmp_path / name / "inner").mkdir(parents=True)
    with replacing(tmp_path / "out") as partial:
        partial.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        f".out.{alive}.partial",
        f".other.{dead}.partial",
        ".out.mine.partial",
    }


def test_a_killed_writer_may_be_a_zombie_or_its_number_taken_by_another(tmp_path):
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()  # it has ended, and is not waited for
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    names = [tmp_path / f".{name}.{pid}.partial" for name, pid in (("out", zombie.pid), ("out", os.getppid()))]
    for path in names:
        path.touch()
    began = psutil.Process(os.getppid()).create_time()
    os.utime(names[1], (began - 60, began - 60))  # by a process of before
    with replacing(tmp_path / "out") as partial:
        partial.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    zombie.wait()


def test_scratch_of_a_killed_process_goes_with_the_next_and_that_of_others_stays(tmp_path):
    code = "import os, sys\nfrom pathlib import Path\nfrom stages.files import scratch_folder\n"
    code += "with scratch_folder(Path(sys.argv[1]), 'clone') as folder:\n"
    code += "    (folder / 'big').mkdir(); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    kept = {f"clone-{os.getppid()}-ours", "clone-notes", left.name.replace("clone", "clean")}
    for name in kept:
        (tmp_path / name).mkdir()
    with scratch_folder(tmp_path, "clone") as first, scratch_folder(tmp_path, "clone") as second:
        assert {path.name for path in tmp_path.iterdir()} == kept | {first.name, second.name}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_digest_depends_on_content_and_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "a", "")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_json_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("file x: do y"), 1, "error: file x: do y\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "big.bin"), 1, "cannot write big.bin: No space left"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, "cannot write output: No space left"),
    ],
)
def test_commands_end_in_one_line(error, status, message, capsys):
    @command
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('more', flush=True)", 141),
        ("raise KeyboardInterrupt", 130),
        ("raise UserError('file x: do y')", 1),
    ],
)
def test_a_command_whose_reader_went_away_never_says_that_all_is_well(body, status):
    """DVC takes status 0 for outputs that are made, and those are the ones of before, put back."""
    code = f"""
from stages.errors import UserError, command
@command
def main():
    input()
    {body}
main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == status


def test_a_bug_keeps_its_traceback():
    @command
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_no_machine_path_in_the_tree():
    root = Path(__file__).parents[1]
    for file in [*root.glob("stages/**/*.py"), *root.glob("docs/*.md"), *root.glob("*.y*ml"), root / "Makefile"]:
        assert str(root) not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_stops_a_stage_is_cleaned_up_after(number, monkeypatch, capsys):
    kept = [(one, signal.getsignal(one)) for one in (signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setenv("DVC_STAGE", "none")

    def stopped() -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    try:
        with pytest.raises(SystemExit) as ended:
            command(stopped)()
    finally:
        for one, handler in kept:
            signal.signal(one, handler)
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err


def test_ctrl_c_while_a_command_imports(tmp_path):
    (tmp_path / "early.py").write_text(
        "import os, signal\nimport stages\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    )
    ended = subprocess.run([sys.executable, tmp_path / "early.py"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted: finished stages are kept; run the same command to go on\n"
