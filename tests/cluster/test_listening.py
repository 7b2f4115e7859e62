"""Who can reach a cluster, and what its workers tell of a repository's address."""

from __future__ import annotations

import re
import subprocess
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
from dask_cluster import LOOPBACK, cluster
from shared import ROOT

from stages.cluster.workshop import Workshop
from stages.errors import UserError
from stages.scratch import run_git


def test_all_listen_on_loopback_only(tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as started:
        for process in (started.scheduler, *started.workers):
            found = psutil.Process(process.pid).net_connections("inet")
            listening = {at.laddr.ip for at in found if at.status == psutil.CONN_LISTEN}
            assert listening == {"127.0.0.1"}


def test_the_docs_start_it_so() -> None:
    commands = re.findall(r"^    dask (?:scheduler|worker) .*", (ROOT / "docs/cluster.md").read_text(), re.M)
    assert len(commands) == 2
    for command in commands:
        assert " ".join(LOOPBACK[:2]) in command and LOOPBACK[2] + " 127.0.0.1:" in command


def workshop(repository: str, commit: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(Workshop, "_home", lambda self: folder)
    return Workshop(repository, commit, "", {}, "topic", False, b"", b"")


def test_no_password_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = workshop("http://ann:s3cr3t@127.0.0.1:9/x.git", "0" * 40, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"cannot clone http://\*\*\*@127") as error:
        made._make_clone(tmp_path / "0")
    assert "s3cr3t" not in str(error.value)


def test_a_kept_clone_has_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = tmp_path / "origin"
    (origin / ".dvc").mkdir(parents=True)
    (origin / ".dvc/config").write_text("")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(origin), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    workshop(str(origin), git("rev-parse", "HEAD"), tmp_path, monkeypatch)._make_clone(tmp_path / "0")
    assert str(origin) not in (tmp_path / "0/.git/config").read_text()


def test_no_password_in_what_git_failed_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="failed") as error:
        run_git("clone", "--quiet", "http://ann:s3cr3t@127.0.0.1:9/x.git", str(tmp_path / "x"))
    assert "s3cr3t" not in str(error.value)


def test_git_sends_the_password_and_nobody_on_the_machine_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, str]] = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            commands = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
            asked.append((self.path, self.headers["Authorization"], "\n".join(c for c in commands if "git" in c)))
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://ann:s3%40cret@127.0.0.1:{server.server_port}/x.git"
    with pytest.raises(UserError, match="cannot clone"):
        workshop(url, "0" * 40, tmp_path, monkeypatch)._make_clone(tmp_path / "0")
    server.shutdown()
    ((path, header, commands),) = asked
    assert path.startswith("/x.git/") and header == f"Basic {b64encode(b'ann:s3@cret').decode()}"
    assert f"127.0.0.1:{server.server_port}/x.git" in commands and "cret" not in commands
