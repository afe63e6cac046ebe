// Set the theme before anything is painted: "light", "dark", or the system's when nothing was chosen.
(() => {
  let chosen = null;
  try { chosen = JSON.parse(localStorage.getItem("sdpersonal.theme")); } catch { /* a browser without storage */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
