// The page of one subject: its live totals, its limits, votes and unique actors, and its trends.
import { ask, inPath } from "./api.js";
import { el, notice, setText } from "./dom.js";
import { clock, duration, moment, number, percent } from "./format.js";
import { Trends } from "./trends.js";

const REFRESH = 5000;
const PER = new Map([["total", " in all"], ["day", " today"]]);

export class Subject {
  constructor(declared, ratios, subject) {
    this.declared = declared;
    this.formulas = ratios;
    this.subject = subject;
    this.tiles = new Map();
    this.exact = new Set(declared.filter((metric) => metric.exact).map(({ metric }) => metric));
    this.rules = el("div", { class: "rules" });
    this.note = el("div", {});
    const tiles = declared.map(({ metric, description }) => {
      const value = el("p", { class: "big" }, "–");
      this.tiles.set(metric, value);
      return el("div", { class: "card tile", title: description }, el("h3", {}, metric), value);
    });
    this.figures = el("div", { class: "tiles" }, ...tiles);
    const charted = declared.filter((metric) => metric.windows.some((window) => ["hour", "day", "month"].includes(window)));
    this.trends = charted.length ? new Trends(charted, () => [subject], subject) : null;
    this.element = el("div", { class: "subject" },
      el("nav", { "aria-label": "Back" }, el("a", { href: "#/" }, "← Overview")),
      el("h1", { class: "name" }, subject), this.note,
      el("section", { class: "totals", "aria-label": "Totals" }, this.figures),
      this.rules, this.trends?.element);
    this.timer = setInterval(() => this.read(), REFRESH);
  }

  get query() {
    // A star in the name makes it a pattern; counters of other subjects are ignored.
    return `overview=true&subject=${encodeURIComponent(this.subject)}`;
  }

  formula(name) {
    const sum = (metrics) => (metrics.length > 1 ? `(${metrics.join(" + ")})` : metrics[0]);
    const { of, by } = this.formulas[name] ?? {}; // absent if the ratio was declared later
    return of ? `${sum(of)} / ${sum(by)}` : "";
  }

  start() {
    this.read();
    this.trends?.refresh();
  }

  overview() {}

  counters({ counters }) {
    let changed = false;
    for (const { metric, subject, value, error } of counters) {
      if (subject !== this.subject || !this.tiles.has(metric)) continue;
      const tile = this.tiles.get(metric);
      changed ||= tile.textContent !== "–";
      setText(tile, error ? `≈ ${number(value)}` : number(value));
      tile.title = error ? `at most ${number(error)} too high` : this.exact.has(metric) ? "exact" : "an approximation";
    }
    if (changed) this.read();
  }

  // Run at most one read at a time, and one more after it: counters may change four times a second.
  async read() {
    if (this.reading) { this.again = true; return; }
    this.reading = true;
    try {
      const path = inPath(this.subject);
      const whole = await ask(`/v1/counters/${path}`);
      this.counters({ counters: Object.entries(whole.counters).map(([metric, value]) => ({ metric, subject: this.subject, value, error: 0 })) });
      const cards = await Promise.all(this.declared.flatMap((metric) => [
        metric.limit ? ask(`/v1/limits/${inPath(metric.metric)}/${path}`).then((limit) => limitCard(metric, limit)) : null,
        metric.votes ? ask(`/v1/votes/${inPath(metric.metric)}/${path}`).then((votes) => votesCard(metric, votes)) : null,
        metric.unique ? this.uniques(metric, path) : null,
      ].filter(Boolean)));
      const ratios = Object.entries(whole.ratios).map(([name, value]) => figure(name.replaceAll("_", " "), percent(value), this.formula(name)));
      this.rules.replaceChildren(...ratios, ...cards);
      this.note.replaceChildren(...(Object.values(whole.counters).some(Boolean) ? [] : [notice("No event of this subject is counted yet. The page updates by itself.")]));
    } catch (error) {
      this.note.replaceChildren(notice(error.message, () => this.read()));
    } finally {
      this.reading = false;
      if (this.again) {
        this.again = false;
        setTimeout(() => this.element.isConnected && this.read(), 1000);
      }
    }
  }

  async uniques(metric, path) {
    const [now, week] = await Promise.all([
      ask(`/v1/uniques/${inPath(metric.metric)}/${path}`),
      ask(`/v1/uniques/${inPath(metric.metric)}/${path}?over=${metric.unique === "month" ? "90d" : "7d"}`),
    ]);
    const range = week.complete ? `in ${metric.unique === "month" ? "90" : "7"} days` : `since ${moment(week.start)}, as earlier days have expired`;
    const card = figure(`Unique actors, ${metric.metric}`, number(now.value),
      `this ${metric.unique}; ${number(week.value)} ${range}, standard error ${percent(now.error)}`);
    card.classList.toggle("incomplete", !week.complete);
    return card;
  }

  destroy() {
    clearInterval(this.timer);
    this.trends?.destroy();
  }
}

function figure(title, value, detail, ...more) {
  return el("div", { class: "card fact" }, el("h3", {}, title), el("p", { class: "big" }, value), ...more, el("p", { class: "sub" }, detail));
}

function limitCard(metric, limit) {
  const meter = el("meter", { min: 0, max: limit.limit, value: Math.min(limit.used, limit.limit), high: limit.limit * 0.9, optimum: 0, "aria-label": `${metric.metric} used` });
  const until = limit.reset_at ? `, resets ${clock(limit.reset_at * 1000)} (in ${duration(limit.reset_at - Date.now() / 1000)})` : "";
  const lacks = limit.error === null ? "; events from before the limit was added are not included" : "";
  return figure(`Limit, ${metric.metric}`, `${number(limit.remaining)} left`, `${number(limit.used)} of ${number(limit.limit)} used${PER.get(metric.per) ?? ` this ${metric.per}`}${until}${lacks}`, meter);
}

function votesCard(metric, votes) {
  const all = votes.up + votes.down;
  const meter = el("meter", { min: 0, max: Math.max(1, all), value: votes.up, "aria-label": "Votes up" });
  const lacks = votes.error === null ? "; the score also has events from before votes were declared" : "";
  return figure(`Score, ${metric.metric}`, number(votes.score), `${number(votes.up)} up, ${number(votes.down)} down${lacks}`, meter);
}
