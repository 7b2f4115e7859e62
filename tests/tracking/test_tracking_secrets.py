"""Passwords of addresses and of the environment, in what MLflow says and in what we say of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sweep_on_disk import Sweep

from stages.tracking.secrets import hidden, refusal, without_password

Sync = Callable[[], str]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://ann:s3cr3t@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg://ann:p%40ss@word@db/mlflow failed", "postgresql+psycopg://***@db/mlflow failed"),
        ("postgresql://db/mlflow?user=ann&password=s3cr3t&x=1", "postgresql://db/mlflow?user=ann&password=***&x=1"),
        ("http://host/#/experiments/1", "http://host/#/experiments/1"),
        ("sqlite:////home/a@b/mlflow.db is not whole", "sqlite:////home/a@b/mlflow.db is not whole"),
        ("https://host/a?mail=a@b.org", "https://host/a?mail=a@b.org"),
    ],
)
def test_addresses(text: str, said: str) -> None:
    assert hidden(text) == said


def test_what_the_environment_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:p%40ssword@db/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "tracking-word")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-word")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of")  # too short to be one
    assert (
        hidden("password p@ssword (p%40ssword), tracking-word or aws-word of it")
        == "password *** (***), *** or *** of it"
    )


@pytest.mark.parametrize(
    "url", ["/a/b.git", "git@host:a.git", "ssh://git@host/a.git", "https://host/a", "https://ann@host/a"]
)
def test_an_address_without_a_password_stays(url: str) -> None:
    assert without_password(url) == (url, {})


def test_a_password_is_added_to_what_git_is_told_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    address, variables = without_password("https://:t0ken@host:8443/a.git")
    assert address == "https://host:8443/a.git"
    assert variables == {
        "GIT_CONFIG_COUNT": "3",
        "GIT_CONFIG_KEY_2": "http.https://host:8443/a.git.extraHeader",
        "GIT_CONFIG_VALUE_2": "Authorization: Basic OnQwa2Vu",
    }


def test_refusals() -> None:
    said = "API request to endpoint /api failed with error code {} != 200. Response body: '…'"
    assert "MLFLOW_TRACKING_PASSWORD" in (refusal(said.format(401)) or "")
    assert "administrator" in (refusal(said.format(403)) or "")
    assert refusal(said.format(404)) is None
    assert refusal("run a401b403 is not there") is None


@pytest.mark.parametrize(
    "uri", ["http://ann:correct-horse@127.0.0.1:9", "postgresql+psycopg://ann:correct-horse@127.0.0.1:9/mlflow"]
)
def test_no_error_has_the_password(
    sweep: Sweep, sync: Sync, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if uri.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[server]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit):
        sync()
    out, error = capsys.readouterr()
    assert "correct-horse" not in out + error and "ann" not in error
    assert error.startswith(f"error: MLflow at {uri.partition('ann')[0]}***@127.0.0.1:9")
    assert error.count("\n") == 1
