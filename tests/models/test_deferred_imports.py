"""What diffusers imports and rarely uses is imported at its first use, and is then what it always is."""

import subprocess
import sys

from conftest import ROOT

SCRIPT = """
import importlib.util, inspect, sys
import sdpersonal.models
from sdpersonal.models.deferred_imports import defer_import

heavy = {"scipy.stats._stats_py", "scipy.integrate._quadrature", "torch._inductor.compile_fx"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)

from diffusers import EulerDiscreteScheduler, LMSDiscreteScheduler
import diffusers.schedulers.scheduling_euler_discrete as euler
inspect.getmodule(lambda: 0)  # asks every module for its file
assert "scipy.stats._stats_py" not in sys.modules
before = euler.scipy.stats
EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(5)
import scipy.stats
assert scipy.stats is sys.modules["scipy.stats"] is not before and before.norm is scipy.stats.norm
lms = LMSDiscreteScheduler()
lms.set_timesteps(3)
lms.get_lms_coefficient(1, 0, 0)
import scipy.integrate
assert "scipy.integrate._quadrature" in sys.modules and scipy.integrate.quad(lambda x: 2 * x, 0, 3)[0] == 9

sys.path.insert(0, sys.argv[1])
defer_import("outer")
defer_import("not_installed_at_all")
assert importlib.util.find_spec("not_installed_at_all") is None
import outer
assert not hasattr(sys, "outer_ran") and importlib.util.find_spec("outer").origin.endswith("__init__.py")
from outer.inner import VALUE  # a submodule needs what its package's import does
assert VALUE == 1 and outer.inner.VALUE == 1 and sys.outer_ran
try:
    outer.nothing
except AttributeError:
    print("done")
"""


def test_deferred_modules_are_imported_completely_at_first_use(tmp_path):
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "__init__.py").write_text("import sys\nsys.outer_ran = 1\n")
    (tmp_path / "outer" / "inner.py").write_text("import sys\nVALUE = sys.outer_ran\n")
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "done\n", ran.stderr
