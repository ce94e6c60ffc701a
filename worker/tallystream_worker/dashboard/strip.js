// The health strip: whether the ledger balances, and the figures that may explain a problem.
import { byId, el, setText } from "./dom.js";
import { duration, number } from "./format.js";

const CELLS = [
  ["ledger", "Ledger"],
  ["lag", "Lag"],
  ["pending", "Pending"],
  ["oldest", "Oldest pending"],
  ["dead", "Dead"],
  ["workers", "Workers alive"],
  ["snapshot", "Last snapshot"],
];
const cells = new Map();
let balanced = 0; // second at which the ledger last balanced

export function buildStrip() {
  const strip = byId("strip");
  for (const [key, label] of CELLS) {
    const value = el("dd", {}, "–");
    cells.set(key, value);
    strip.append(el("div", { class: `cell ${key}` }, el("dt", {}, label), value));
  }
}

export function showStrip(figures) {
  if (figures.unaccounted === 0) balanced = figures.at;
  const [ledger, good] = ledgerOf(figures);
  put("ledger", ledger, good);
  put("lag", figures.lag == null ? "unknown" : number(figures.lag), figures.lag > 10_000 ? "warn" : "");
  put("pending", number(figures.pending), "");
  put("oldest", duration(figures.oldest_pending_seconds), figures.oldest_pending_seconds > 60 ? "bad" : "");
  put("dead", number(figures.dead), figures.dead > 0 ? "warn" : "");
  put("workers", number(figures.workers), figures.workers === 0 ? "bad" : "");
  const [snapshot, late] = snapshotOf(figures);
  put("snapshot", snapshot, late);
}

function ledgerOf(figures) {
  const away = figures.unreachable?.length ?? 0; // a node of the cluster does not answer
  if (away) return [`${number(away)} ${away === 1 ? "partition" : "partitions"} not readable`, "bad"];
  if (figures.unaccounted === 0) return ["balances", "good"];
  if (figures.unaccounted != null) return [`${number(figures.unaccounted)} unaccounted`, "bad"];
  // The number of events in waiting entries is unknown: under a steady load the ledger closes only now and then.
  return balanced && figures.at - balanced < 60 ? ["balances", "good"] : ["counting", ""];
}

// The bound is the same as that of the alert TallystreamSnapshotTooOld.
function snapshotOf({ snapshot_age_seconds: age, snapshot_every_seconds: every }) {
  if (age == null) return ["none", every == null ? "" : "warn"];
  return [`${duration(age)} ago`, every != null && age > 2 * every + 300 ? "bad" : ""];
}

function put(key, text, tone) {
  const cell = cells.get(key);
  setText(cell, text);
  if (cell.dataset.tone !== tone) cell.dataset.tone = tone;
}
