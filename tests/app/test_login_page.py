"""The login page in a real browser, on Gradio's own login without any model behind it."""

from types import SimpleNamespace

import gradio as gr
import pytest

from sdpersonal.app.routes import page
from sdpersonal.app.server import login, server
from sdpersonal.app.server.auth import Access
from support import axe
from support import browser as browsers

pytestmark = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())


@pytest.fixture
def url(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # as `isolate_gradio` does
    port = browsers.free_port()
    app = gr.Server(docs_url=None, openapi_url=None)
    app.include_router(page.router(SimpleNamespace()))
    server._launch(app, Access(port, passwords={"ann": "correct horse"}), tmp_path, [], True)
    yield f"http://127.0.0.1:{port}"
    app.get_blocks()._queue.close()
    app.get_blocks().server.close()


@pytest.fixture
def window(tmp_path):
    with browsers.browser(tmp_path / "profile", 390, 844) as opened:
        yield opened


def log_in(window, password):
    window.run("document.getElementById('password').value = ''")
    window.type("#password", password)
    window.click("#submit")


MESSAGE = "document.getElementById('message').textContent"


@pytest.mark.slow
def test_the_login_page_refuses_wrong_passwords_and_then_logs_in(url, window, monkeypatch):
    monkeypatch.setattr(login, "LOGIN_PAUSE", 3.0)
    window.open(url + "/#library")
    window.wait("document.activeElement?.id == 'username'")
    for theme in ("light", "dark"):
        window.set_theme(theme)
        assert axe.violations(window) == []
    window.type("#username", "ann")
    log_in(window, "wrong horse")
    window.wait(f"{MESSAGE}.includes('do not belong together')")
    assert window.run("return document.activeElement.id") == "password"
    assert window.run("return document.getElementById('password').getAttribute('aria-invalid')") == "true"
    assert axe.violations(window) == []
    for _ in range(login.MAX_FAILED_LOGINS):
        log_in(window, "wrong horse")
        window.wait("document.getElementById('submit').getAttribute('aria-disabled') != 'true' || " + MESSAGE)
    window.wait(f"{MESSAGE}.includes('Too many wrong passwords. Wait 3 seconds')")
    assert window.run("return document.getElementById('submit').textContent").startswith("Wait")
    window.wait(f"{MESSAGE}.includes('You can try again now')")
    window.click("#show")
    assert window.run("return document.getElementById('password').type") == "text"
    log_in(window, "correct horse")
    window.wait("document.querySelector('.app-header') !== null")
    assert window.run("return location.hash") == "#library"  # the tab that the address named
    assert [address for address in window.requests() if not address.startswith((url, "data:", "blob:"))] == []


@pytest.mark.slow
def test_the_login_page_reports_that_the_app_does_not_answer(url, window):
    window.open(url)
    window.wait("document.activeElement?.id == 'username'")
    window.run("window.fetch = () => Promise.reject(new TypeError('no network'))")
    window.type("#username", "ann")
    log_in(window, "correct horse")
    window.wait(f"{MESSAGE}.includes('does not answer')")
