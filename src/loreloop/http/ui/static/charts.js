// Draws the curves of a page once more with uPlot, so that one can look into them: drag to zoom, double click to see all
// again. Without this script the pictures of the server stay.
"use strict";

const zooms = new Map(); // by metric, so that a part that is sent anew stays as it was looked at
const plots = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function columnsOf(series, metric, names) {
  const found = names.map((name) => new Map(series[name][metric]));
  const steps = [...new Set(found.flatMap((values) => [...values.keys()]))].sort((a, b) => a - b);
  return [steps, ...found.map((values) => steps.map((step) => values.get(step) ?? null))];
}

function optionsOf(metric, all, names, width) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const digits = (value) => (value == null ? "" : Number(value.toPrecision(4)).toString());
  const lines = names.map((name) => ({
    label: all.length > 1 ? String(all.indexOf(name) + 1) : "value",
    stroke: colour(`--curve-${all.indexOf(name)}`),
    width: 2,
    spanGaps: true,
    points: { show: false },
    value: (plot, value) => digits(value),
  }));
  return {
    width,
    height: 220,
    cursor: { drag: { x: true, y: false }, sync: { key: "steps" } },
    scales: { x: { time: false } },
    axes: [axis, { ...axis, size: 64, values: (plot, values) => values.map(digits) }],
    series: [{ label: "step" }, ...lines],
    legend: { show: true, live: true },
    hooks: {
      setSelect: [(plot) => zooms.set(metric, [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")])],
    },
  };
}

// A click on a step leads to what it has learned from; a drag zooms, and a double click shows all again.
function leadToSteps(plot) {
  const page = plot.root.closest("[data-steps]") || document.querySelector("[data-steps]");
  if (!page) return;
  let begun = 0;
  let going = 0;
  plot.over.addEventListener("mousedown", (event) => (begun = event.clientX));
  plot.over.addEventListener("dblclick", () => clearTimeout(going));
  plot.over.addEventListener("click", (event) => {
    clearTimeout(going);
    const step = plot.data[0][plot.cursor.idx];
    if (step === undefined || event.detail > 1 || Math.abs(event.clientX - begun) > 3) return;
    going = setTimeout(() => location.assign(page.dataset.steps + step), 400);
  });
}

function draw(figure, series) {
  const metric = figure.dataset.metric;
  const all = Object.keys(series);
  const names = all.filter((name) => (series[name][metric] || []).length);
  // One point is no line to look into.
  if (!names.some((name) => series[name][metric].length > 1)) return;
  const place = figure.querySelector(".plot");
  const width = place.clientWidth;
  const plot = new uPlot(optionsOf(metric, all, names, width), columnsOf(series, metric, names), (made, begin) => {
    place.replaceChildren(made.root);
    begin();
  });
  plot.root.addEventListener("dblclick", () => zooms.delete(metric));
  leadToSteps(plot);
  const zoom = zooms.get(metric);
  if (zoom) plot.setScale("x", { min: zoom[0], max: zoom[1] });
  plots.push({ plot, place });
}

let nAsked = 0;

async function drawAll() {
  const figures = [...document.querySelectorAll("figure.chart")];
  if (!figures.length || typeof uPlot === "undefined") return;
  const number = (nAsked += 1);
  const answer = await fetch(location.href, { headers: { accept: "application/json" } });
  if (!answer.ok) return;
  const { series } = await answer.json();
  if (number !== nAsked) return; // a later question will draw what is newer
  for (const { plot } of plots.splice(0)) plot.destroy();
  for (const figure of document.querySelectorAll("figure.chart")) draw(figure, series);
}

addEventListener("resize", () => {
  for (const { plot, place } of plots) if (place.isConnected) plot.setSize({ width: place.clientWidth, height: 220 });
});
document.addEventListener("renewed", drawAll);
document.getElementById("theme").addEventListener("click", () => queueMicrotask(drawAll));
drawAll();
