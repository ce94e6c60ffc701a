// One stream of live updates. It reconnects by itself, after its last position.
const SILENT = 4000; // milliseconds without an overview message, which normally arrives several times a second
const RETRY = [1000, 10_000];

export class Live {
  constructor(handlers, changed) {
    this.handlers = handlers; // event -> function of its data
    this.changed = changed; // called with "live" or "stale", the millisecond since which, and the reason
    this.heard = Date.now();
    this.state = "loading";
    this.failures = 0;
    this.position = "";
    setInterval(() => { if (Date.now() - this.heard > SILENT) this.say("stale", this.heard, "The service does not reply"); }, 500);
  }

  open(query) {
    this.query = query;
    this.position = "";
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.source?.close();
    const since = this.position ? `&since=${encodeURIComponent(this.position)}` : "";
    const source = new EventSource(`/v1/live?${this.query}${since}`);
    this.source = source;
    for (const [event, handle] of Object.entries(this.handlers)) {
      source.addEventListener(event, (message) => {
        if (message.lastEventId) this.position = message.lastEventId;
        handle(JSON.parse(message.data));
      });
    }
    source.addEventListener("overview", () => { this.failures = 0; this.heard = Date.now(); this.say("live", this.heard); });
    source.addEventListener("stale", (message) => {
      const { since: second, reason } = JSON.parse(message.data);
      this.say("stale", Math.min(second * 1000, Date.now()), `Redis: ${reason}`);
    });
    source.addEventListener("error", () => {
      if (source !== this.source) return;
      if (source.readyState === EventSource.CLOSED) {
        // The request was rejected: the browser does not reconnect, so do it here.
        this.handlers.refused?.();
        this.timer = setTimeout(() => this.connect(), Math.min(RETRY[1], RETRY[0] * 2 ** this.failures++));
      }
      if (this.state === "live") this.say("stale", this.heard, "The connection is lost");
    });
  }

  say(state, since, reason = "") {
    if (state === this.state && reason === this.reason) return;
    this.state = state;
    this.reason = reason;
    this.changed(state, since, reason);
  }
}
