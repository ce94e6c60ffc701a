// Finds a subject by its exact name, or by a prefix in the leaderboards.
import { ask, subjectLink } from "./api.js";
import { byId, el } from "./dom.js";
import { compact } from "./format.js";

const WAIT = 120;

export function buildSearch() {
  const [form, query, list, panel] = [byId("search"), byId("query"), byId("found"), byId("found-panel")];
  let [timer, at, asked] = [0, -1, 0];

  const close = () => { panel.hidden = true; at = -1; query.setAttribute("aria-expanded", "false"); query.removeAttribute("aria-activedescendant"); };
  const go = (subject) => { close(); query.value = ""; query.blur(); location.hash = subjectLink(subject); };
  const move = (by) => {
    const options = [...list.children];
    if (!options.length) return;
    at = (at + by + options.length + (at < 0 && by < 0 ? 1 : 0)) % options.length;
    options.forEach((option, n) => option.setAttribute("aria-selected", String(n === at)));
    query.setAttribute("aria-activedescendant", options[at].id);
    options[at].scrollIntoView({ block: "nearest" });
  };

  async function suggest() {
    const prefix = query.value.trim();
    if (!prefix) return close();
    const turn = ++asked;
    const found = await ask(`/v1/subjects?prefix=${encodeURIComponent(prefix)}&n=8`).catch(() => ({ subjects: [] }));
    if (turn !== asked || document.activeElement !== query) return undefined;
    at = -1;
    list.replaceChildren(...found.subjects.map(({ subject, metric, value }, n) =>
      el("li", { role: "option", id: `found-${n}`, "aria-selected": "false", on: { mousedown: (event) => { event.preventDefault(); go(subject); } } },
        el("span", { class: "name" }, subject), el("span", { class: "sub" }, `${compact(value)} ${metric}`))));
    panel.hidden = false;
    query.setAttribute("aria-expanded", String(found.subjects.length > 0));
    return undefined;
  }

  query.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(suggest, WAIT); });
  query.addEventListener("blur", close);
  query.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); move(event.key === "ArrowDown" ? 1 : -1); }
    if (event.key === "Escape") close();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = at >= 0 ? list.children[at].querySelector(".name").textContent : query.value.trim();
    if (chosen) go(chosen);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "")) { event.preventDefault(); query.focus(); }
  });
}
