"""What tools/serve.py says before it serves: mistakes end in one sentence."""

import pytest

from tools import serve
from utils.errors import UserError

# For each option, values that it refuses.
BAD = {
    "--weights": ["", "missing", "{file}"],
    "--data": ["", "missing", "{file}"],
    "--result_path": ["", "{file}"],
    "--training": ["x"],
    "--host": ["", "not an address", "0.0.0.0", "::"],
    "--port": ["-1", "65536", "x"],
    "--socket": ["-1", "65536", "x"],
    "--token": ["", " , "],
    "--allowed_hosts": ["", ","],
    "--name": ["", "a-b", "a/b", "x" * 33],
    "--alias": ["", "demo", "=demo", "gpt-image-1=", "a=b,,c=d"],
    "--max_queue": ["0", "x"],
    "--max_client_jobs": ["0"],
    "--max_images": ["0"],
    "--max_steps": ["0"],
    "--max_side": ["0"],
    "--max_body": ["0"],
    "--deadline": ["0", "nan"],
    "--client_timeout": ["0", "inf"],
    "--keep_seconds": ["-1"],
    "--max_weights": ["0"],
    "--grace": ["0"],
    "--amp": ["x"],
    "--use_gpu": ["-2", "x"],
}


def flags() -> list[str]:
    actions = serve.build_parser()._actions
    return [action.option_strings[0] for action in actions if action.option_strings[0] != "-h"]


@pytest.mark.parametrize("flag", flags())
def test_every_option_refuses_what_it_cannot_do(flag, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    (tmp_path / "file").write_text("hello")
    for value in BAD[flag]:
        with pytest.raises((SystemExit, UserError)) as stop:
            serve.main([f"{flag}={value.format(file=tmp_path / 'file')}"])
        if stop.type is SystemExit:
            assert stop.value.code == 2
            message = capsys.readouterr().err
        else:
            message = str(stop.value)
        assert flag in message and message.strip().count("\n") == 0


def test_other_machines_need_a_token(monkeypatch):
    parse = serve.build_parser().parse_args
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "secret, other")
    assert serve.tokens_of(parse([])) == ("secret", "other")
    serve.check_reach(parse(["--host", "0.0.0.0"]), ("secret",))
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        serve.check_reach(parse(["--host", host]), ())


@pytest.mark.parametrize("token", ["p\xe4sswort", "\u043a\u043b\u044e\u0447", "a\tb"])
def test_a_token_is_what_a_header_can_carry(monkeypatch, token):
    parse = serve.build_parser().parse_args
    with pytest.raises(UserError, match="--token: letters, digits and signs of ASCII"):
        serve.tokens_of(parse(["--token", f"good,{token}"]))
    monkeypatch.setenv(serve.TOKEN_VARIABLE, token)
    with pytest.raises(UserError, match=f"{serve.TOKEN_VARIABLE}: letters"):
        serve.tokens_of(parse([]))


def test_without_the_libraries_it_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    with pytest.raises(UserError, match="pip install -r requirements-serve.txt"):
        serve.main([])
