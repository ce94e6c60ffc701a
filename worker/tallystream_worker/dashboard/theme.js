// Before the first paint: the colours that were chosen last, else those of the system.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("tallystream-theme"); } catch { /* storage may be forbidden */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
