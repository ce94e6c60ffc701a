// Runs before the first paint: sets the colours that the user chose last; without a choice, the system decides.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("tallystream-theme"); } catch { /* storage may be forbidden */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
