// The login page: send name and password, and say in words why they were refused.

const form = document.getElementById("login");
const name = document.getElementById("username");
const password = document.getElementById("password");
const message = document.getElementById("message");
const submit = document.getElementById("submit");
const show = document.getElementById("show");

let timer = 0;

function say(text, invalid = false) {
  message.textContent = text;
  for (const input of [name, password]) input.setAttribute("aria-invalid", String(invalid));
}

function enable(on) {
  submit.setAttribute("aria-disabled", String(!on)); // it keeps the focus, which a disabled button would lose
}

/** Say how long to wait; the seconds count down without being read out each time. */
function wait(seconds) {
  const end = Date.now() + seconds * 1000;
  enable(false);
  say(`Too many wrong passwords. Wait ${seconds} seconds, then try again.`);
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    submit.textContent = left > 0 ? `Wait ${left} s` : "Log in";
    if (left > 0) return;
    clearInterval(timer);
    enable(true);
    say("You can try again now.");
  };
  clearInterval(timer);
  timer = setInterval(tick, 500);
  tick();
}

async function logIn() {
  enable(false);
  say("");
  let response;
  try {
    response = await fetch("/login", { method: "POST", body: new URLSearchParams(new FormData(form)) });
  } catch {
    enable(true);
    say("The app does not answer. Is it still running?");
    return;
  }
  if (response.ok) {
    location.reload(); // with the tab that the address names
    return;
  }
  if (response.status === 429) {
    wait(Number(response.headers.get("Retry-After")) || 30);
    return;
  }
  enable(true);
  if (response.status === 400) {
    say("That user name and password do not belong together.", true);
    password.select();
    password.focus();
  } else {
    const text = await response.text();
    say(text.length < 300 ? text : `The app refused that (${response.status}).`);
  }
}

form.addEventListener("submit", event => {
  event.preventDefault();
  if (submit.getAttribute("aria-disabled") !== "true") logIn();
});

show.addEventListener("click", () => {
  const hide = password.type === "text";
  password.type = hide ? "password" : "text";
  show.textContent = hide ? "Show" : "Hide";
  show.setAttribute("aria-label", `${show.textContent} password`);
});

name.focus();
