// What goes wrong is said on the page itself, and where a test can read it.

window.addEventListener("error", (event) => fail(event.message));
window.addEventListener("unhandledrejection", (event) => fail(String(event.reason)));

function fail(message) {
  document.documentElement.dataset.error = message;
  const box = document.getElementById("failure");
  box.textContent = "This page could not be drawn in full: " + message;
  box.hidden = false;
}
