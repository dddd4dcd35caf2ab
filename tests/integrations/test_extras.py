"""Without their packages the modules say which extra to install, and importing streamseq needs none of them."""

import importlib
import subprocess
import sys

import pytest

MODULES = {
    "lightning": ("lightning", "lightning"),
    "pytorch_lightning": ("pytorch_lightning", "lightning"),
    "ignite": ("ignite", "ignite"),
    "accelerate": ("accelerate", "accelerate"),
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    package, extra = MODULES[name]
    for module in [each for each in sys.modules if each == package or each.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"streamseq.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install streamseq\[{extra}\]"):
        importlib.import_module(f"streamseq.integrations.{name}")


def test_models_are_adapted_without_any_of_them():
    code = (
        "import sys, streamseq as ss; assert 'torch' not in sys.modules; ss.adapt; "
        "assert not {'lightning', 'pytorch_lightning', 'ignite', 'accelerate', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
