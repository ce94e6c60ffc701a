// The overview: event rate, totals, leaderboards and trends.
import { Alerts } from "./alerts.js";
import { subjectLink } from "./api.js";
import { drawSpark } from "./charts.js";
import { choice, el, setText } from "./dom.js";
import { compact, moment, number, rate } from "./format.js";
import { Trends } from "./trends.js";

const WINDOWS = [["hour", "Hour"], ["day", "Day"], ["7d", "7 days"], ["all", "All time"]];
const KEPT = 60; // seconds of the rate that the small chart shows
const LINES = 5;
const HINTS = new Map([["hour", "this hour "], ["day", "today "], ["7d", "in 7 days "], ["all", ""]]);

// Says which events a leaderboard lacks; `begin` is the second from which it has them all, null if no bucket is whole.
function lacking(begin) {
  return begin === null ? "subjects are missing until tallystream rebuild" : `only since ${moment(begin)}: earlier buckets have expired`;
}

export class Overview {
  constructor(declared, choose) {
    this.declared = declared;
    this.window = "all";
    this.rates = [];
    this.tiles = new Map();
    this.boards = new Map();
    this.latest = new Map();
    this.rate = el("p", { class: "huge" }, "–");
    this.spark = el("canvas", { class: "spark", role: "img", "aria-label": "Events a second over the last minute" });
    this.counted = el("p", { class: "sub" }, "");
    const tiles = el("div", { class: "tiles" }, ...declared.map((metric) => this.tile(metric)));
    this.lists = el("div", { class: "boards" }, ...declared.filter((metric) => metric.top).map((metric) => this.board(metric)));
    const charted = declared.filter((metric) => metric.windows.length && metric.top);
    this.trends = charted.length ? new Trends(charted, (metric) => this.leaders(metric), "the five leading subjects") : null;
    this.alerts = new Alerts();
    this.element = el("div", { class: "overview" },
      el("h1", { class: "hidden" }, "Overview"), this.alerts.element,
      el("section", { class: "card rate", "aria-label": "Events a second" },
        el("h2", {}, "Events per second"), this.rate, this.counted, this.spark),
      el("section", { class: "totals", "aria-label": "Totals by metric" }, tiles),
      el("section", { class: "leaders" },
        el("header", { class: "head" }, el("h2", {}, "Leaders"),
          choice("Window", WINDOWS, this.window, (window) => { this.window = window; this.clear(); choose(); })),
        this.lists),
      this.trends?.element);
  }

  get query() {
    return `overview=true&top=${this.window}`;
  }

  start() {
    // The first leaderboards start the trends, which need the leading subjects.
    this.started = false;
  }

  tile({ metric, description }) {
    const [value, speed] = [el("p", { class: "big" }, "–"), el("p", { class: "sub" }, " ")];
    this.tiles.set(metric, [value, speed]);
    return el("div", { class: "card tile", title: description }, el("h3", {}, metric), value, speed);
  }

  board({ metric, description, windows }) {
    const list = el("ol", { "aria-label": `Leaders of ${metric}` });
    const empty = el("p", { class: "empty" }, "…");
    const since = el("p", { class: "sub", hidden: true });
    this.boards.set(metric, { since, list, empty, windows, rows: [] });
    return el("div", { class: "card board" }, el("h3", {}, metric), el("p", { class: "sub" }, description || " "), since, list, empty);
  }

  clear() {
    this.boards.forEach((board) => { this.fill(board, []); setText(board.empty, "…"); });
  }

  overview(figures) {
    if (figures.rate != null) this.rates.push(figures);
    while (this.rates[0]?.at < figures.at - KEPT) this.rates.shift();
    setText(this.rate, rate(figures.rate));
    setText(this.counted, `${number(figures.events.counted)} counted`);
    drawSpark(this.spark, this.rates.map((each) => each.rate));
    for (const each of figures.metrics) {
      const [value, speed] = this.tiles.get(each.metric) ?? [];
      if (!value) continue;
      setText(value, each.total < 1e9 ? number(each.total) : compact(each.total));
      value.title = number(each.total);
      setText(speed, each.rate ? `${rate(each.rate)} /s` : "quiet");
    }
  }

  top({ window, metrics, incomplete, unreachable }) {
    if (window !== this.window) return;
    for (const [metric, board] of this.boards) {
      const places = metrics[metric];
      if (places && window === "all") this.latest.set(metric, places);
      this.fill(board, places ?? []);
      const begin = incomplete[metric];
      const lacks = [
        ...(begin === undefined ? [] : [lacking(begin)]),
        ...(unreachable?.length ? [`${number(unreachable.length)} partitions cannot be read`] : []),
      ];
      board.since.hidden = lacks.length === 0;
      setText(board.since, lacks.join("; "));
      board.list.classList.toggle("incomplete", lacks.length > 0);
      setText(board.empty, places ? `Nothing ${HINTS.get(window)}yet.` : `No ${window === "7d" ? "" : window} window is kept for ${metric}.`.replace("  ", " "));
    }
    if (!this.started && this.trends) {
      this.started = true;
      this.trends.refresh();
    }
  }

  fill(board, places) {
    const most = Math.max(1, ...places.map((place) => Math.abs(place.value)));
    while (board.rows.length > places.length) board.rows.pop().row.remove();
    places.forEach((place, n) => {
      const row = board.rows[n] ?? this.row(board);
      if (row.name.textContent !== place.subject) {
        row.name.textContent = place.subject;
        row.name.title = place.subject;
        row.name.href = subjectLink(place.subject);
        row.value.classList.remove("moved");
      } else if (row.last !== undefined && row.last !== place.value) {
        // Restart the animation: the class must be absent for a moment.
        row.value.classList.remove("moved");
        void row.value.offsetWidth;
        row.value.classList.add("moved");
      }
      row.last = place.value;
      setText(row.value, compact(place.value));
      row.value.title = number(place.value);
      row.row.style.setProperty("--share", `${(Math.abs(place.value) / most) * 100}%`);
    });
    board.empty.hidden = places.length > 0;
  }

  row(board) {
    const [name, value] = [el("a", { class: "name" }), el("span", { class: "value" })];
    const row = { row: el("li", {}, name, value), name, value };
    board.rows.push(row);
    board.list.append(row.row);
    return row;
  }

  leaders(metric) {
    const board = this.boards.get(metric);
    return (this.latest.get(metric) ?? board.rows.map((row) => ({ subject: row.name.textContent })))
      .slice(0, LINES).map((place) => place.subject);
  }

  destroy() {
    this.trends?.destroy();
    this.alerts.destroy();
  }
}
