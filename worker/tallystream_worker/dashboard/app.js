// Builds the page: shows the overview or the subject in the address, and keeps it up to date with one live stream.
import { ask } from "./api.js";
import { byId, el, notice, setText } from "./dom.js";
import { clock } from "./format.js";
import { Live } from "./live.js";
import { signedIn, signIn } from "./login.js";
import { Overview } from "./overview.js";
import { buildSearch } from "./search.js";
import { buildStrip, showStrip } from "./strip.js";
import { Subject } from "./subject.js";

const page = byId("page");
let [shown, declared, ratios] = [null, null, null];

const live = new Live({
  overview: (figures) => { showStrip(figures); showAsOf(figures); shown?.overview(figures); },
  top: (top) => shown?.top?.(top),
  counters: (data) => shown?.counters?.(data),
  reset: () => shown?.read?.(),
  refused: () => enter(),
}, (state, since, reason) => {
  document.body.dataset.state = state;
  setText(byId("state-text"), state === "live" ? "live" : "stale");
  const banner = byId("banner");
  banner.hidden = state === "live";
  setText(banner, state === "live" ? "" : `Stale since ${clock(since)}. ${reason}; retrying.`);
});

function route() {
  const [, kind, name] = location.hash.match(/^#\/(subject)\/(.+)$/) ?? [];
  let subject = null;
  try { subject = kind && decodeURIComponent(name); } catch { /* not a valid address: show the overview */ }
  const before = shown;
  before?.destroy();
  shown = subject ? new Subject(declared, ratios, subject) : new Overview(declared, () => live.open(shown.query));
  document.title = subject ? `${subject} – tallystream` : "tallystream";
  page.replaceChildren(shown.element);
  page.setAttribute("aria-busy", "false");
  live.open(shown.query);
  shown.start();
  if (before) { window.scrollTo(0, 0); byId("main").focus({ preventScroll: true }); }
}

// A stream ID begins with the millisecond at which the server accepted the entry; it is later if the clock was set back.
function showAsOf({ as_of: id, at }) {
  const milliseconds = Math.min(Number(id.split("-")[0]), Math.floor(at * 1000));
  setText(byId("as-of"), milliseconds ? `${clock(milliseconds)}.${String(milliseconds % 1000).padStart(3, "0")}` : "the beginning");
  byId("as-of").title = `stream ID ${id}`;
}

// Show the sign-in dialog if the service needs a token and there is no session.
async function enter() {
  if (!(await signedIn().catch(() => true))) await signIn();
}

async function begin() {
  try {
    await enter();
    const whole = await ask("/v1/overview");
    const totals = new Map(whole.overview.metrics.map((metric) => [metric.metric, metric.total]));
    ratios = whole.ratios;
    declared = whole.declared.toSorted((one, other) => totals.get(other.metric) - totals.get(one.metric));
  } catch (error) {
    document.body.dataset.state = "stale";
    setText(byId("state-text"), "stale");
    page.replaceChildren(el("div", { class: "card" }, notice(`${error.message}.`.replace("..", "."), begin)));
    setTimeout(() => { if (!declared) begin(); }, 3000);
    return;
  }
  window.addEventListener("hashchange", route);
  route();
}

function buildTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const told = () => { button.setAttribute("aria-pressed", String(isDark())); document.dispatchEvent(new Event("themechange")); };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("tallystream-theme", theme); } catch { /* then the choice is valid for this page only */ }
    told();
  });
  system.addEventListener("change", told);
  told();
}

buildTheme();
buildStrip();
buildSearch();
begin();
