"""What holds for the source as a whole: imports go one way, light modules stay light, and no dangerous call is made."""

import ast
import re
import subprocess
import sys

import pytest

import sdpersonal
from conftest import ROOT

PACKAGE = ROOT / "sdpersonal"
SOURCES = sorted(path for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")])
LIGHT = [
    "sdpersonal",
    *(
        f"sdpersonal.{name}"
        for name in (
            "errors",
            "storage",
            "config",
            "prompts",
            "api",
            "photos.loading",
            "training.control",
            "training.run_dir",
            "display.progress",
            "concepts.concept",
            "concepts.importers",
            "concepts.library",
            "cli.main",
        )
    ),
]
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "gradio"}

# The one reader of pickles is a stack machine of its own, which can call nothing; its tests show it.
RESTRICTED_UNPICKLER = PACKAGE / "concepts" / "importers" / "pickles.py"
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.hub.load",
    "yaml.load",
    "pickle.load",
    "pickle.loads",
}
FORBIDDEN_METHODS = {"extractall"}
WRITERS = {
    "os.replace",
    "os.rename",
    "os.remove",
    "os.unlink",
    "os.rmdir",
    "os.mkdir",
    "os.makedirs",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "shutil.move",
    "shutil.copy",
    "shutil.copy2",
    "shutil.copyfile",
    "shutil.copytree",
}
WRITING_METHODS = {"write_text", "write_bytes", "touch", "unlink", "rmdir", "mkdir", "symlink_to", "hardlink_to"}


def trees():
    for path in SOURCES:
        yield path, ast.parse(path.read_text(), str(path))


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def where(path, node) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_imports_follow_the_order_of_layers():
    # In a process of its own: it sets up logging anew, which silences every logger there is.
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_light_modules_import_no_heavy_packages():
    """One after the other in one process, the first that does is named."""
    report = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        f"    importlib.import_module(name); assert not {HEAVY!r} & set(sys.modules), name\n"
    )
    ran = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_listing_concepts_imports_no_heavy_packages():
    pytest.importorskip("sdpersonal.cli.main")
    report = (
        "import sys\nfrom sdpersonal.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        f"print('heavy:', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", report, "concepts", "list"], env=_with_root(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].split() == ["heavy:"]


def _with_root():
    import os

    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_public_names_and_their_former_names_exist():
    for name in (*sdpersonal.__all__, "InversionSettings", "PersonalError", "Request"):
        assert callable(getattr(sdpersonal, name)), name
    assert sdpersonal.PersonalError is sdpersonal.UserError and {*sdpersonal.__all__} <= {*dir(sdpersonal)}
    with pytest.raises(AttributeError):
        sdpersonal.Nothing  # noqa: B018


def test_no_pickle_module_is_imported():
    imports = []
    for path, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if PICKLES & {name.partition(".")[0] for name in names} and path != RESTRICTED_UNPICKLER:
                imports.append(where(path, node))
    assert imports == []


def test_no_call_executes_code_from_data():
    places = []
    for path, tree in trees():
        for node, name in calls(tree):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                name in FORBIDDEN_CALLS
                or name.rpartition(".")[2] in FORBIDDEN_METHODS
                or keywords.get("shell", "False") != "False"
                or keywords.get("trust_remote_code", "False") != "False"
                or keywords.get("weights_only") == "False"
            ):
                places.append(f"{where(path, node)} {name}")
    assert places == []


def test_user_text_is_never_rendered_as_html():
    """gr.HTML renders what it is given; gr.Markdown loads remote pictures. Both take constants only."""
    places = []
    for path, tree in trees():
        for node, name in calls(tree):
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "value")]
            if name in ("gr.HTML", "gr.Markdown") and not all(_is_constant(value) for value in given):
                places.append(f"{where(path, node)} {name}")
    assert places == []


def _is_constant(value) -> bool:
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Name) and value.id.isupper())


ROUTES = sorted((PACKAGE / "app" / "routes").rglob("*.py"))
PAGE = PACKAGE / "app" / "page"
SCRIPTS = sorted((PAGE / "js").glob("*.js"))


def _is_route(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = [node.func for node in function.decorator_list if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Attribute) and node.attr in ("get", "post") for node in decorators)


def test_routes_are_short_and_import_no_heavy_packages():
    """What a route does is in `app/backend`: a route has fifteen lines at most, and none imports torch."""
    long, heavy = [], []
    for path in ROUTES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_route(node):
                lines = node.end_lineno - node.body[0].lineno + 1
                long += [f"{where(path, node)} {node.name}: {lines} lines"] if lines > 15 else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            heavy += [where(path, node) for name in names if name.partition(".")[0] in HEAVY]
    assert long == heavy == []


def test_the_page_never_renders_text_as_html():
    """Names, prompts and messages come from other people's files."""
    ways = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setHTMLUnsafe|srcdoc"
    )
    assert [path.name for path in SCRIPTS if ways.search(path.read_text())] == []
    markup = [path for path in PAGE.glob("*.html")]
    inline = re.compile(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", re.I)
    assert markup and [path.name for path in markup if inline.search(path.read_text())] == []


def test_the_page_requests_no_external_resources():
    texts = {path: path.read_text() for path in PAGE.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg")}
    outside = re.compile(r"(?:https?:)?//(?!www\.w3\.org/)[a-z0-9-]+\.[a-z]", re.I)
    assert [
        path.name for path, text in texts.items() if outside.search(re.sub(r"^\s*//.*$", "", text, flags=re.M))
    ] == []


def test_every_file_that_the_page_names_exists():
    missing = []
    for path in SCRIPTS:
        names = re.findall(r"""(?:from|import)\s*\(?\s*["'](\./[^"']+)["']""", path.read_text())
        missing += [f"{path.name}: {name}" for name in names if not (path.parent / name).is_file()]
    for path in PAGE.glob("*.html"):
        names = re.findall(r'(?:href|src)="/page/([^"]+)"', path.read_text())
        missing += [f"{path.name}: {name}" for name in names if not (PAGE / name).is_file()]
    assert missing == []


def test_every_colour_of_the_page_is_defined_in_both_themes():
    """A colour that is written outside of the custom properties would not change with the theme."""
    texts = {path.name: path.read_text() for path in PAGE.rglob("*.css")}
    literal = r"#[0-9a-f]{3,8}\b|\brgba?\("
    pairs = re.findall(r"(--[a-z-]+): light-dark\(", texts["theme.css"])
    assert len(pairs) > 15 and not re.search(literal, re.sub(r"light-dark\(.*\);", "", texts["theme.css"]), re.I)
    # What is drawn on a photo to crop it is the same in both themes.
    rules = [rule for name in texts.keys() - {"theme.css"} for rule in texts[name].split("}") if ".crop" not in rule]
    assert [rule for rule in rules if re.search(literal, rule, re.I)] == []
    css = " ".join(texts.values())
    defined = set(re.findall(r"(--[a-z-]+):", css))
    defined |= {f"--{name}" for path in SCRIPTS for name in re.findall(r"""["']--([a-z-]+)""", path.read_text())}
    assert set(re.findall(r"var\((--[a-z-]+)", css)) <= defined


def test_the_package_contains_no_asserts():
    """`python -O` removes asserts; a user's mistake raises UserError."""
    asserts = [where(path, node) for path, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert asserts == []


def test_only_the_storage_package_writes_files():
    places = []
    for path, tree in trees():
        if path.parent == PACKAGE / "storage":
            continue
        for node, name in calls(tree):
            receiver, _, method = name.rpartition(".")
            if name in WRITERS or (method in WRITING_METHODS and receiver != "storage") or _opens_to_write(node, name):
                places.append(f"{where(path, node)} {name}")
    assert places == []


def _opens_to_write(node, name) -> bool:
    if name != "open" and not name.endswith(".open"):
        return False
    texts = [
        value.value
        for value in [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]
    return any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts)
