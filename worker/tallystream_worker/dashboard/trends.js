// A chart over time, with its figures as a table.
import { ask, inPath } from "./api.js";
import { TimeChart } from "./charts.js";
import { choice, el, notice } from "./dom.js";
import { moment, number } from "./format.js";

export const RANGES = new Map([
  ["hour", ["24 hours", 24]],
  ["day", ["30 days", 30]],
  ["month", ["12 months", 12]],
]);
const REFRESH = 10_000;

// `subjects(metric)` returns the subjects to draw a line for; `metrics` are those with windows.
export class Trends {
  constructor(metrics, subjects, label) {
    this.metrics = metrics;
    this.subjects = subjects;
    this.label = label;
    this.metric = metrics[0];
    this.window = this.metric.windows.includes("hour") ? "hour" : this.metric.windows[0];
    this.canvas = el("canvas", { role: "img", "aria-label": `Trends of ${label}` });
    this.chart = new TimeChart(this.canvas, { legend: true });
    this.table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The figures of the chart" });
    this.note = el("div", {});
    this.controls = el("div", { class: "controls" });
    this.element = el("section", { class: "card trends" },
      el("header", { class: "head" }, el("h2", {}, "Trends"), this.controls),
      el("div", { class: "canvas" }, this.canvas), this.note,
      el("details", {}, el("summary", {}, "As a table"), this.table));
    this.build();
    this.timer = setInterval(() => this.refresh(), REFRESH);
  }

  build() {
    const names = this.metrics.map((metric) => [metric.metric, metric.metric]);
    const ranges = [...RANGES].filter(([window]) => this.metric.windows.includes(window)).map(([window, [text]]) => [window, text]);
    this.controls.replaceChildren(
      names.length > 1 ? choice("Metric", names, this.metric.metric, (name) => this.pick(name)) : "",
      choice("Range", ranges, this.window, (window) => { this.window = window; this.refresh(); }));
  }

  pick(name) {
    this.metric = this.metrics.find((metric) => metric.metric === name);
    if (!this.metric.windows.includes(this.window)) this.window = this.metric.windows.find((window) => RANGES.has(window));
    this.build();
    this.refresh();
    [...this.controls.querySelectorAll("button")].find((button) => button.textContent === name)?.focus();
  }

  async refresh() {
    const [metric, window] = [this.metric.metric, this.window];
    const subjects = await this.subjects(metric);
    try {
      const last = RANGES.get(window)[1];
      const answers = await Promise.all(subjects.map((subject) =>
        ask(`/v1/counters/${inPath(subject)}/${inPath(metric)}?window=${window}&last=${last}`)));
      if (metric !== this.metric.metric || window !== this.window || !this.element.isConnected) return;
      const sets = answers.map((answer) => ({
        label: answer.subject,
        points: answer.series.map((point) => ({ x: point.start * 1000, y: point.value })),
        missing: answer.missing,
      }));
      const cut = answers.find((answer) => !answer.complete);
      this.note.replaceChildren(sets.length ? "" : notice("Nothing is counted yet: the chart appears with the first events."),
        cut ? el("p", { class: "sub" }, `Dashed: buckets before ${moment(cut.start)} have expired.`) : "");
      this.canvas.parentElement.hidden = !sets.length;
      this.canvas.setAttribute("aria-label", `${metric} of ${this.label}, ${RANGES.get(window)[0]}; the table below has the figures`);
      if (sets.length) await this.chart.show(window, sets);
      this.fill(answers);
    } catch (error) {
      this.note.replaceChildren(notice(error.message, () => this.refresh()));
    }
  }

  fill(answers) {
    if (!answers.length) return this.table.replaceChildren();
    const head = el("tr", {}, el("th", { scope: "col" }, "Begins (UTC)"), ...answers.map((answer) => el("th", { scope: "col" }, answer.subject)));
    const rows = answers[0].series.map((point, n) => el("tr", {}, el("th", { scope: "row" }, point.bucket),
      ...answers.map((answer) => el("td", {}, answer.series[n].value === null ? "expired" : number(answer.series[n].value)))));
    return this.table.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.reverse())));
  }

  destroy() {
    clearInterval(this.timer);
    this.chart.destroy();
  }
}
