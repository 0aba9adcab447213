"""The advice on a missing package works for how this copy was installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from cgconvert import installation
from cgconvert.errors import MissingRuntimeError
from cgconvert.runtimes.packages import import_package

EXTRAS = {
    "llamacpp": "llama-cpp-python",
    "onnxruntime": "onnxruntime",
    "genai": "onnxruntime-genai",
    "transformers": "transformers",
}

INSTALLED = {
    "a wheel": None,
    "a wheel's file": {"url": "file:///tmp/cgconvert.whl", "archive_info": {}},
    "a git URL": {
        "url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40},
    },
    "a clone": {"url": "file:///home/me/clone", "dir_info": {"editable": True}},
}  # fmt: skip
"""The kinds of copies by their direct_url.json, which pip writes (PEP 610); None: from an index."""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with pip and nothing else to know it by; returns its folder."""
    prefix = tmp_path / "environment"
    (prefix / "bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "executable", str(prefix / "bin" / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return prefix


def install(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the metadata of a faked cgconvert into `folder`, with another bound than the clone's."""
    info = folder / "cgconvert-0.0.0.dist-info"
    info.mkdir(parents=True)
    lines = [f'Requires-Dist: {package}>=9.8; extra == "{extra}"' for extra, package in
             EXTRAS.items()]  # fmt: skip
    head = ["Metadata-Version: 2.4", "Name: cgconvert", "Version: 0.0.0"]
    (info / "METADATA").write_text("\n".join([*head, *lines, ""]))
    if INSTALLED[kind] is not None:
        (info / "direct_url.json").write_text(json.dumps(INSTALLED[kind]))
    monkeypatch.setattr(installation, "__file__", str(folder / "cgconvert" / "installation.py"))
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("kind", INSTALLED)
def test_the_advice_names_the_package_and_this_environment(
    kind: str, extra: str, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(kind, tmp_path / "site-packages", monkeypatch)
    package = EXTRAS[extra]
    error = str(MissingRuntimeError(package, extra))
    assert error == (
        f"{package} is not installed: {environment}/bin/python -m pip install '{package}>=9.8'"
    )


def test_a_clone_that_is_not_installed_reads_its_own_file(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (required,) = installation.requirements("llamacpp", "llama-cpp-python")
    assert required.startswith("llama-cpp-python>=")
    monkeypatch.setattr(installation, "__file__", "/nowhere/cgconvert/installation.py")
    monkeypatch.setattr(sys, "path", [])
    assert installation.requirements("llamacpp", "llama-cpp-python") == ("llama-cpp-python",)
    assert installation.requirements("no-such", "package") == ("package",)


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )


def test_each_tool_of_environments_gets_its_own_command(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, python = ["runtime>=1"], environment / "bin" / "python"
    command = installation.install_command
    assert shlex.split(command(package)) == [str(python), "-m", "pip", "install", "runtime>=1"]
    assert "--force-reinstall" in command(package, again=True)
    assert installation.uninstall_command("x") == f"{python} -m pip uninstall x"

    without_pip(monkeypatch)  # an environment of uv, or one of its tools
    assert command(package) == f"uv pip install --python {python} 'runtime>=1'"
    assert "--reinstall" in command(package, again=True)
    assert installation.uninstall_command("x") == f"uv pip uninstall --python {python} x"

    (environment / "pipx_metadata.json").write_text("{}")
    assert command(package) == "pipx inject environment 'runtime>=1'"
    assert command(package, again=True) == "pipx inject --force environment 'runtime>=1'"
    assert installation.uninstall_command("x") == "pipx uninject environment x"


def test_a_system_python_and_windows(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert "--break-system-packages" not in installation.install_command(["x"])
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert "pip install --break-system-packages x" in installation.install_command(["x"])
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(sys, "prefix", "elsewhere")
    monkeypatch.setattr(sys, "executable", r"C:\my env\python.exe")
    words = r'"C:\my env\python.exe" -m pip install "x>=1"'
    joined = installation._joined([sys.executable, "-m", "pip", "install", "x>=1"])
    monkeypatch.setattr(os, "name", "posix")
    assert joined == words


def test_llama_cpp_needs_a_compiler(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiler" not in str(MissingRuntimeError("llama-cpp-python", "llamacpp"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    error = str(MissingRuntimeError("llama-cpp-python", "llamacpp"))
    assert "no C++ compiler is here: install one, or add --extra-index-url https://abetl" in error
    assert "compiler" not in str(MissingRuntimeError("transformers", "transformers"))


def module(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module that stands for a runtime's, and return its name."""
    folder.mkdir(exist_ok=True)
    (folder / "pretended_runtime.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pretended_runtime", raising=False)
    return "pretended_runtime"


BROKEN = {
    "a library of the system": "raise OSError('libgomp.so.1: cannot open shared object file')",
    "an extension": "raise ImportError('libcudart.so.12: cannot open shared object file')",
    "its own library": "raise RuntimeError(\"Shared library with base name 'llama' not found\")",
    "another package": "import no_such_package_at_all",
    "half an update": "import json; json.no_such_attribute",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_package_that_cannot_be_imported_is_not_called_absent(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path / "site", BROKEN[kind], monkeypatch)
    with pytest.raises(MissingRuntimeError) as caught:
        import_package(name, "llama-cpp-python", "llamacpp")
    error = str(caught.value)
    assert "llama-cpp-python is installed and cannot be imported (" in error
    assert "install it again: " in error
    assert "'llama-cpp-python>=" in error
    assert (caught.value.code, caught.value.exit_code) == ("missing-runtime", 2)


def test_versions_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("99.0", "99.0.dev1", "1!0", "mine"):
        name = module(tmp_path / version, f"__version__ = {version!r}", monkeypatch)
        assert import_package(name, "llama-cpp-python", "llamacpp").__version__ == version
    name = module(tmp_path / "old", "__version__ = '0.1.2'", monkeypatch)
    with pytest.raises(MissingRuntimeError, match=r"0\.1\.2 is installed, needed is >=") as caught:
        import_package(name, "llama-cpp-python", "llamacpp")
    assert "install" in str(caught.value)
    with pytest.raises(MissingRuntimeError, match="llama-cpp-python is not installed"):
        import_package("no_such_package_at_all", "llama-cpp-python", "llamacpp")
