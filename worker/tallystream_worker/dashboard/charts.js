// Charts: a small line chart for the first paint, and Chart.js, which is loaded when it is needed.
let loading = null;

export function loadCharts() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/dashboard/chart.js";
    script.onload = () => resolve(window.Chart);
    script.onerror = () => { loading = null; reject(new Error("the charts could not be loaded")); };
    document.head.append(script);
  });
  return loading;
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const colours = () => [1, 2, 3, 4, 5].map((n) => style(`--line-${n}`));

export function drawSpark(canvas, values) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  if (values.length < 2) return;
  const top = Math.max(1, ...values) * 1.1;
  const step = width / (values.length - 1);
  const y = (value) => height - 2 - (value / top) * (height - 6);
  pen.beginPath();
  values.forEach((value, n) => (n ? pen.lineTo(n * step, y(value)) : pen.moveTo(0, y(value))));
  pen.strokeStyle = style("--accent");
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(width, height);
  pen.lineTo(0, height);
  pen.closePath();
  pen.globalAlpha = 0.12;
  pen.fillStyle = style("--accent");
  pen.fill();
}

// A line chart over time; `show(unit, sets)` draws sets of { label, points: [{ x, y }], missing: [{ start, end }] }. A y
// of null has expired; a dashed line at 0 is drawn over `missing`, in seconds.
export class TimeChart {
  constructor(canvas, { legend = true } = {}) {
    this.canvas = canvas;
    this.legend = legend;
    document.addEventListener("themechange", () => this.last && this.show(...this.last));
  }

  async show(unit, sets) {
    this.last = [unit, sets];
    const Chart = await loadCharts();
    if (!this.canvas.isConnected) return;
    const ink = style("--muted");
    const palette = colours();
    const datasets = sets.map((set, n) => ({
      label: set.label,
      data: set.points,
      borderColor: palette[n % palette.length],
      backgroundColor: palette[n % palette.length],
      fill: sets.length === 1 ? { target: "origin", above: `${palette[n % palette.length]}22` } : false,
      borderWidth: 2,
      pointRadius: set.points.length > 40 ? 0 : 2,
      pointHoverRadius: 5,
      cubicInterpolationMode: "monotone",
    }));
    const missing = sets.find((set) => set.missing?.length)?.missing ?? [];
    for (const span of missing) {
      datasets.push({
        label: "expired", data: [{ x: span.start * 1000, y: 0 }, { x: span.end * 1000, y: 0 }],
        borderColor: ink, backgroundColor: ink, borderDash: [6, 6], borderWidth: 2, pointRadius: 0, fill: false,
      });
    }
    const scales = {
      x: {
        type: "time",
        time: { unit, tooltipFormat: unit === "hour" ? "d MMM, HH:mm" : unit === "day" ? "d MMM yyyy" : "MMM yyyy", displayFormats: { hour: "HH:mm", day: "d MMM", month: "MMM yy" } },
        ticks: { color: ink, maxRotation: 0, autoSkipPadding: 24 },
        grid: { display: false },
        border: { color: style("--line") },
      },
      y: { beginAtZero: true, ticks: { color: ink, precision: 0, maxTicksLimit: 6 }, grid: { color: style("--line") }, border: { display: false } },
    };
    const plugins = {
      legend: { display: this.legend, position: "bottom", align: "start", labels: { color: style("--ink"), boxWidth: 10, boxHeight: 10, usePointStyle: true, pointStyle: "circle", padding: 16 } },
      tooltip: { backgroundColor: style("--ink"), titleColor: style("--surface"), bodyColor: style("--surface"), padding: 10, boxPadding: 4, usePointStyle: true },
    };
    const options = { animation: false, responsive: true, maintainAspectRatio: false, interaction: { mode: "index", intersect: false }, scales, plugins };
    if (this.chart) {
      Object.assign(this.chart, { options });
      this.chart.data.datasets = datasets;
      this.chart.update("none");
    } else {
      this.chart = new Chart(this.canvas, { type: "line", data: { datasets }, options });
    }
  }

  destroy() {
    this.chart?.destroy();
    this.chart = null;
    this.last = null;
  }
}
