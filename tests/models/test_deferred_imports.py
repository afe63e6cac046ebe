"""What diffusers rarely uses is imported at its first use, and other modules get the packages as they are."""

import importlib
import importlib.util
import subprocess
import sys
from unittest import mock

import pytest

from conftest import ROOT
from sdpersonal.models.deferred_imports import deferred_imports

AS_A_LIBRARY = """
import importlib.util, inspect, pickle, sys
import sdpersonal as sp

sd = sp.load("tiny", device="cpu")
sd.generate("a cat", num_images=1, steps=1, quiet=True)
names = {"scipy.stats", "scipy.integrate", "bitsandbytes", "torch._inductor.compile_fx"}
assert not names & set(sys.modules), names & set(sys.modules)

from scipy.stats._distn_infrastructure import rv_frozen  # the first import of the package is of a module inside
import scipy.stats as stats
from scipy import integrate
import scipy
assert isinstance(stats.norm(), rv_frozen) and stats is scipy.stats is sys.modules["scipy.stats"]
assert inspect.ismodule(integrate) and "quad" in dir(integrate) and "Integration" in integrate.__doc__
assert pickle.loads(pickle.dumps(stats.norm(3))).mean() == 3
assert pickle.loads(pickle.dumps(stats.zscore)) is stats.zscore
assert importlib.util.find_spec("scipy.stats") is stats.__spec__

from diffusers import EulerDiscreteScheduler, LMSDiscreteScheduler
EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(5)
lms = LMSDiscreteScheduler()
lms.set_timesteps(3)
lms.get_lms_coefficient(1, 0, 0)

from transformers.utils import is_bitsandbytes_available
is_installed = importlib.util.find_spec("bitsandbytes") is not None
assert is_bitsandbytes_available() is is_installed and "bitsandbytes" not in sys.modules
print("done")
"""


def test_a_program_that_uses_the_library_gets_the_real_packages():
    ran = subprocess.run([sys.executable, "-c", AS_A_LIBRARY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout == "done\n", ran.stderr


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Make a package that notes its import, and a module that imports it."""
    (tmp_path / "rare_package").mkdir()
    (tmp_path / "rare_package" / "__init__.py").write_text("from .part import Part\nruns = []\n")
    (tmp_path / "rare_package" / "part.py").write_text("class Part: pass\n")
    (tmp_path / "its_user.py").write_text("import rare_package\ndef make(): return rare_package.Part()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("rare_package", "rare_package.part", "its_user"):
        sys.modules.pop(name, None)


def test_a_deferred_package_is_imported_at_its_first_use(packages):
    with deferred_imports("rare_package", "package_that_is_not_installed"):
        import its_user

        assert importlib.util.find_spec("rare_package").origin.endswith("__init__.py")
        assert its_user.rare_package.__file__.endswith("__init__.py")  # which inspect.getmodule asks of every module
        assert importlib.util.find_spec("package_that_is_not_installed") is None
    assert not {"rare_package", "rare_package.part"} & set(sys.modules)
    made = its_user.make()
    import rare_package
    from rare_package.part import Part

    assert isinstance(made, Part) and made.__class__ is rare_package.Part
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        its_user.rare_package.nothing  # noqa: B018
    with mock.patch("rare_package.Part", int):
        assert its_user.make() == 0
    assert importlib.reload(rare_package).Part is Part


def test_a_package_that_is_used_while_it_is_deferred_stays_imported(packages):
    with deferred_imports("rare_package"):
        import its_user

        made = its_user.make()
    assert type(made) is sys.modules["rare_package"].Part


def test_a_package_that_was_imported_before_is_not_deferred(packages):
    import rare_package

    with deferred_imports("rare_package"):
        import its_user
    assert its_user.rare_package is rare_package is sys.modules["rare_package"]


def test_a_failed_import_leaves_no_deferred_package(packages):
    with pytest.raises(ImportError, match="broken"), deferred_imports("rare_package"):
        raise ImportError("broken")
    assert "rare_package" not in sys.modules
