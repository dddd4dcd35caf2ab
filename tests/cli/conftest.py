"""What tests of commands share."""

import pytest

from streamseq import cli


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in this process, in a folder of its own; the exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMSEQ_TRACEBACK", raising=False)

    def call(*args):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return exit.value.code, said.out, said.err

    return call
