// Formats numbers, rates, shares and times for people.
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

export const NONE = "–";

export const number = (value) => (value == null ? NONE : whole.format(value));
export const compact = (value) => (value == null ? NONE : Math.abs(value) < 10_000 ? whole.format(value) : short.format(value));
export const rate = (value) =>
  value == null ? NONE : value === 0 ? "0" : value < 10 ? value.toFixed(1) : value < 100_000 ? whole.format(value) : short.format(value);
export const percent = (share) => `${(share * 100).toFixed(2)}\u00a0%`;
export const moment = (second) => `${new Date(second * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC`;
export const clock = (milliseconds) => new Date(milliseconds).toLocaleTimeString("en-GB");

export function duration(seconds) {
  if (seconds == null) return "none";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}
