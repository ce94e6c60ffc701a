// The card of the firing alerts, shown if at least one fires.
import { ask, subjectLink } from "./api.js";
import { el } from "./dom.js";
import { clock, number } from "./format.js";

const REFRESH = 5000;
const SHOWN = 5;

export class Alerts {
  constructor() {
    this.list = el("ul", {});
    this.title = el("h2", {}, "Alerts");
    this.element = el("section", { class: "card alerts", "aria-label": "Alerts that are firing", hidden: true }, this.title, this.list);
    this.timer = setInterval(() => this.read(), REFRESH);
    this.read();
  }

  async read() {
    const found = await ask(`/v1/alerts?n=${SHOWN}`).catch(() => null); // the banner shows that the service does not reply
    if (!found) return;
    if (!found.alerts.length) clearInterval(this.timer);
    const count = found.alerts.reduce((sum, alert) => sum + alert.firing, 0);
    const silent = found.alerts.filter((alert) => !alert.complete);
    this.element.hidden = count === 0 && !silent.length;
    this.title.textContent = count === 1 ? "1 alert is firing" : `${number(count)} alerts are firing`;
    this.list.replaceChildren(...silent.map((alert) => el("li", { class: "incomplete" },
      el("strong", {}, alert.alert), el("span", { class: "sub" }, ` is silent: part of ${alert.value} of ${alert.metric} has expired`))), ...found.firing.map((alert) => el("li", {},
      el("strong", {}, alert.alert), " ", el("a", { href: subjectLink(alert.subject) }, alert.subject),
      el("span", { class: "sub" }, ` ${alert.metric} at ${number(alert.value)} since ${clock(alert.since * 1000)}`))));
  }

  destroy() {
    clearInterval(this.timer);
  }
}
