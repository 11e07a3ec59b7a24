"use strict";
// The pictures of the page: each function returns one for a width in pixels, and knows nothing of the page around it.

// Okabe and Ito's colours, for words; numbers go from dark to light.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000"];
const DIVERGED = "#d55e00", SELECTED = "#000";
const STEP = "step (updates made)";
const NARROW = 520;

const short = (value) => {
  if (!Number.isFinite(value)) return "–";
  const far = value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-4);
  return far ? d3.format(".3~e")(value) : String(Number(value.toPrecision(3)));
};
const positive = (value) => Number.isFinite(value) && value > 0;
const isNumber = (text) => text !== "" && Number.isFinite(Number(text));

// Colours for the values of one key.
function coloursOf(values) {
  if (values.length <= COLOURS.length && values.some((value) => !isNumber(value))) return COLOURS.slice(0, values.length);
  return values.map((_, place) => d3.interpolateViridis(values.length > 1 ? (0.9 * place) / (values.length - 1) : 0.2));
}

// Of losses on a log scale, of accuracies and r2 on a linear one; those far worse than the best constant prediction's are alike.
function scaleOf(values, isLoss, ceiling, floor) {
  if (!isLoss) {
    const [low, high] = d3.extent(values.filter(Number.isFinite));
    return d3.scaleSequential([Math.max(low ?? 0, floor), Math.max(high ?? 1, floor)], d3.interpolateViridis).clamp(true);
  }
  const seen = values.filter(positive);
  const low = Math.max(Math.min(...seen, ceiling / 10), 1e-8);
  return d3.scaleSequentialLog([low, Math.max(Math.min(Math.max(...seen, 1e-2), ceiling), 1.01 * low)], d3.interpolateViridis).clamp(true);
}

const legendOf = (values, colours) =>
  Plot.legend({ color: { type: "categorical", domain: thinned(values, 24), range: thinned(colours, 24) }, style: { overflow: "visible" } });

// The colours of a scale.
function rampOf(scale, isLog, label, width) {
  const color = { type: "linear", interpolate: d3.interpolateViridis };
  if (!isLog) return Plot.legend({ color: { ...color, domain: scale.domain() }, label, width: Math.min(width, 320), tickFormat: short });
  const domain = scale.domain().map(Math.log10);
  const decades = d3.range(Math.ceil(domain[0]), domain[1] + 1e-9);
  const ticks = decades.length > 1 ? thinned(decades, 6) : d3.ticks(...domain, 3);
  return Plot.legend({ color: { ...color, domain }, label, width: Math.min(width, 320), ticks, tickFormat: (power) => short(10 ** power) });
}

// The axis that those values need. A log axis has no place for what is not positive.
function axis(log, label, values, more = {}) {
  const [low, high] = d3.extent(values.filter(log ? positive : Number.isFinite));
  const domain = low === undefined ? [log ? 0.1 : 0, 1] : low === high ? [log ? low / 2 : low - 0.5, log ? 2 * high : high + 0.5] : [low, high];
  const decades = log && low > 0 ? Math.log10(high / low) : 0;
  return { type: log ? "log" : "linear", label, domain, nice: true, ...(log ? { tickFormat: decades > 1 ? decadeFormat(decades) : short } : {}), ...more };
}

// Decades alone are named, every second or third where they are many.
function decadeFormat(decades) {
  const every = Math.ceil(decades / 8);
  return (value) => {
    const power = Math.log10(value);
    return Math.abs(power - Math.round(power)) < 1e-9 && Math.round(power) % every === 0 ? short(value) : "";
  };
}

// The table of one category as a map. cells: {down, across, mean, text, title, best, selected}
function mapChart(cells, downs, acrosses, labels, scale, width, choose) {
  const marginLeft = 30 + 7 * d3.max(downs, (value) => value.length);
  const inside = (width - marginLeft - 8) / acrosses.length;
  const slanted = inside < 6.5 * d3.max(acrosses, (value) => value.length) + 4;
  const height = Math.max(9, Math.min(40, 560 / downs.length));
  const background = (cell) => (cell.mean === null ? DIVERGED : scale(cell.mean));
  // The texts with all digits where there is room, else with two, else none: the title has it.
  const wide = inside >= 6.5 * d3.max(cells, (cell) => cell.text.length) + 4;
  const letter = (inside - 3) / d3.max(cells, (cell) => cell.narrow.length);
  const readable = height >= 14 && (wide || letter >= 4.3);
  const chart = Plot.plot({
    width,
    marginLeft,
    marginRight: 8,
    marginTop: 24,
    marginBottom: slanted ? 62 : 40,
    height: downs.length * height + 24 + (slanted ? 62 : 40),
    x: { type: "band", domain: acrosses, label: labels.across, tickRotate: slanted ? -45 : 0, ticks: thinned(acrosses, 24), padding: 0 },
    y: { type: "band", domain: downs, label: labels.down, ticks: thinned(downs, 24), padding: 0 },
    marks: [
      Plot.cell(cells, { x: "across", y: "down", fill: background, inset: 0.75, rx: 2, className: "cells", title: "title" }),
      Plot.cell(cells.filter((cell) => cell.selected), { x: "across", y: "down", stroke: SELECTED, strokeWidth: 3, fill: "none", inset: 0.5, pointerEvents: "none" }),
      readable
        ? Plot.text(cells, {
            x: "across",
            y: "down",
            text: (cell) => (wide ? cell.text : cell.narrow),
            fontSize: wide ? 11.5 : Math.min(11.5, letter / 0.57),
            fontWeight: (cell) => (cell.best ? 800 : 400),
            fill: (cell) => (cell.mean !== null && d3.lab(background(cell)).l < 60 ? "#fff" : "#000"),
            pointerEvents: "none",
          })
        : null,
    ],
  });
  return clickable(chart, ".cells rect, rect.cells", cells, choose);
}

// The chart, whose marks are buttons that choose their cells.
function clickable(chart, marks, cells, choose) {
  d3.select(chart)
    .selectAll(marks)
    .data(cells)
    .classed("cell", true)
    .attr("tabindex", 0)
    .attr("role", "button")
    .attr("aria-label", (cell) => cell.title)
    .on("click", (_, cell) => choose(cell))
    .on("keydown", (event, cell) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose(cell)));
  return chart;
}

// The cells of a search, which fill no table, as points. Numbers that span two decades are on a log axis.
function pointsChart(cells, downs, acrosses, labels, scale, width, choose) {
  const side = (values, label) => {
    if (!values.every(isNumber)) return { type: "point", domain: values, label };
    const [low, high] = d3.extent(values, Number);
    const few = values.length <= 12 ? { ticks: values.map(Number), tickFormat: short } : {};
    return axis(low > 0 && high >= 100 * low, label, values.map(Number), { grid: true, ...few });
  };
  const at = (values, name) => (values.every(isNumber) ? (cell) => Number(cell[name]) : name);
  const place = { x: at(acrosses, "across"), y: at(downs, "down") };
  const chart = Plot.plot({
    width,
    height: 360,
    marginLeft: 52,
    x: side(acrosses, labels.across),
    y: side(downs, labels.down),
    marks: [
      Plot.dot(cells, { ...place, r: 6, fill: (cell) => (cell.mean === null ? DIVERGED : scale(cell.mean)), className: "cells", title: "title", sort: null }),
      Plot.dot(cells.filter((cell) => cell.selected), { ...place, r: 8, stroke: SELECTED, strokeWidth: 3, pointerEvents: "none" }),
      Plot.text(cells.filter((cell) => cell.best), { ...place, text: () => "*", dy: -12, fontSize: 16, fontWeight: 800, pointerEvents: "none" }),
    ],
  });
  return clickable(chart, ".cells circle, circle.cells", cells, choose);
}

// At most so many of the values, evenly spaced.
function thinned(values, most) {
  const every = Math.ceil(values.length / most);
  return values.filter((_, place) => place % every === 0);
}

// Lines with bands. points: {line, colour, step, value, low, high, title, chosen}
function curvesChart(points, label, logs, width) {
  const drawn = points.filter((point) => Number.isFinite(point.value) && (!logs.y || point.value > 0) && (!logs.x || point.step > 0));
  const chosen = drawn.filter((point) => point.chosen), others = drawn.filter((point) => !point.chosen);
  const banded = others.filter((point) => point.low < point.high && (!logs.y || point.low > 0));
  const at = { x: "step", y: "value", z: "line" };
  return Plot.plot({
    width,
    height: width < NARROW ? 300 : 400,
    marginLeft: 52,
    x: axis(logs.x, STEP, drawn.map((point) => point.step)),
    y: axis(logs.y, label, drawn.flatMap((point) => [point.value, point.low, point.high]), { grid: true }),
    marks: [
      Plot.areaY(banded, { x: "step", y1: "low", y2: "high", z: "line", fill: "colour", fillOpacity: 0.16 }),
      Plot.line(others, { ...at, stroke: "colour", strokeWidth: 1.5 }),
      Plot.line(chosen, { ...at, stroke: SELECTED, strokeWidth: 2.5 }),
      Plot.dot(chosen.length < 40 ? chosen : [], { ...at, fill: SELECTED, r: 2.5 }),
      Plot.tip(drawn, Plot.pointer({ x: "step", y: "value", title: "title" })),
    ],
  });
}

// One run's losses. series: [{name, colour, steps, values}]
function lossChart(series, width) {
  const points = series.flatMap(({ name, colour, steps, values }) =>
    Array.from(values, (value, place) => ({ name, colour, step: steps[place], value })).filter((point) => positive(point.value)));
  return Plot.plot({
    width,
    height: 240,
    marginLeft: 52,
    x: axis(false, STEP, points.map((point) => point.step), { nice: false }),
    y: axis(true, "loss", points.map((point) => point.value), { grid: true }),
    marks: [
      Plot.line(points, { x: "step", y: "value", z: "name", stroke: "colour", strokeWidth: (point) => (point.name === "batch" ? 0.8 : 2) }),
      Plot.dot(points.filter((point) => point.name !== "batch"), { x: "step", y: "value", fill: "colour", r: 2.5 }),
      Plot.tip(points, Plot.pointer({ x: "step", y: "value", title: (point) => `${point.name}: ${short(point.value)} at step ${point.step}` })),
    ],
  });
}

// Gradient norms from block to block. points: {line, colour, block, norm, title, chosen}; domain: of all steps.
function profileChart(points, domain, width) {
  const drawn = points.filter((point) => positive(point.norm));
  const at = { x: "block", y: "norm", z: "line" };
  const chosen = drawn.filter((point) => point.chosen);
  return Plot.plot({
    width,
    height: 320,
    marginLeft: 52,
    x: { label: "block l", domain: [1, Math.max(2, d3.max(points, (point) => point.block))], tickFormat: (l) => (Number.isInteger(l) ? l : "") },
    y: axis(true, "‖dW‖", domain, { grid: true, clamp: true }),
    marks: [
      Plot.line(drawn, { ...at, stroke: "colour", strokeWidth: 1.5, strokeOpacity: 0.8 }),
      Plot.line(chosen, { ...at, stroke: SELECTED, strokeWidth: 3 }),
      Plot.dot(chosen, { ...at, fill: SELECTED, r: 3 }),
      Plot.tip(drawn, Plot.pointer({ x: "block", y: "norm", title: "title" })),
    ],
  });
}

// Gradient norms of one run by block and step. norms: log10, a row a step; blocks: their numbers.
function normsChart(norms, steps, blocks, width) {
  const rows = blocks.length, columns = steps.length;
  const values = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) values[row * columns + column] = norms[column * rows + row];
  const finite = values.filter(Number.isFinite);
  const domain = finite.length ? d3.extent(finite) : [-1, 0];
  return Plot.plot({
    width,
    height: 320,
    marginLeft: 40,
    x: { label: STEP, domain: [0, columns], ticks: d3.ticks(0, columns - 1, width < NARROW ? 4 : 7).filter(Number.isInteger), tickFormat: (place) => steps[place] },
    y: { label: "block l", domain: [0, rows], ticks: d3.range(rows).filter((row) => row % Math.ceil(rows / 17) === 0).map((row) => row + 0.5), tickFormat: (row) => blocks[Math.floor(row)] },
    color: { type: "linear", scheme: "viridis", domain, legend: true, label: "‖dW‖, powers of ten; orange: none is left", width: Math.min(width, 320) },
    marks: [
      Plot.frame({ fill: DIVERGED }),
      Plot.raster(values, { width: columns, height: rows, x1: 0, x2: columns, y1: 0, y2: rows, imageRendering: "pixelated" }),
      Plot.ruleX([0.5], { stroke: "#fff", strokeWidth: 2, className: "now" }),
    ],
  });
}

// How one signal is distributed in some blocks, one above the other. heights: of each block's bins, 0 to 255. theory: null, or what
// they would be by theory, 0 to 1, as black lines.
function ridgesChart(heights, theory, edges, blocks, isLog, label, width) {
  const bins = edges.length - 1, overlap = 1.6;
  const points = blocks.flatMap((block, row) =>
    d3.range(bins).flatMap((bin) => [bin, bin + 1].map((end) => ({ block, base: row, x: edges[end], y: row + (overlap * heights[row * bins + bin]) / 255 }))));
  const rows = d3.range(blocks.length).reverse();
  const at = (row) => points.filter((point) => point.base === row);
  return Plot.plot({
    width,
    height: 70 + Math.max(22, Math.min(40, 380 / blocks.length)) * (blocks.length + overlap),
    marginLeft: 40,
    x: axis(isLog, label, Array.from(edges), { nice: false, domain: [edges[0], edges[bins]] }),
    y: { domain: [0, blocks.length - 1 + overlap], label: "block l", ticks: rows, tickFormat: (row) => blocks[row], tickSize: 0 },
    marks: [
      rows.map((row) => [
        Plot.areaY(at(row), { x: "x", y1: row, y2: "y", fill: d3.interpolateViridis((0.85 * row) / Math.max(1, blocks.length - 1)), fillOpacity: 0.8 }),
        Plot.lineY(at(row), { x: "x", y: "y", stroke: "#fff", strokeWidth: 1 }),
        theory ? Plot.line(d3.range(bins), { x: (bin) => (edges[bin] + edges[bin + 1]) / 2, y: (bin) => row + overlap * theory[row * bins + bin], stroke: "#000", className: "theory" }) : null,
        Plot.ruleY([row], { stroke: "#b8c0c8" }),
      ]),
    ],
  });
}

// Every line crosses each axis where its value is. axes: [{label, ticks: [text]}], the last one the measure, between 0 and 1.
function parallelChart(lines, axes, measureTicks, width) {
  const points = lines.flatMap((line) => line.at.map((y, x) => ({ x, y, line })));
  const last = axes.length - 1;
  const ticks = [
    ...axes.slice(0, last).flatMap((each, x) => thinned(each.ticks, 16).map((text) => ({ x, y: each.ticks.length > 1 ? each.ticks.indexOf(text) / (each.ticks.length - 1) : 0.5, text }))),
    ...measureTicks.map((tick) => ({ ...tick, x: last })),
  ];
  const chosen = points.filter((point) => point.line.chosen);
  return Plot.plot({
    width,
    height: width < NARROW ? 320 : 380,
    marginTop: 30,
    marginBottom: 14,
    marginLeft: 16 + 6.5 * d3.max(axes[0].ticks, (text) => text.length),
    marginRight: 48,
    x: { type: "point", domain: d3.range(axes.length), axis: null, padding: 0 },
    y: { domain: [0, 1], axis: null },
    marks: [
      Plot.line(points, { x: "x", y: "y", z: "line", stroke: (point) => point.line.colour, strokeOpacity: lines.length > 60 ? 0.55 : 0.85, strokeWidth: 1.6 }),
      Plot.line(chosen, { x: "x", y: "y", z: "line", stroke: SELECTED, strokeWidth: 3 }),
      Plot.ruleX(d3.range(axes.length), { stroke: "#5b6570" }),
      Plot.text(axes, { x: (_, place) => place, frameAnchor: "top", dy: -22, text: "label", fontWeight: 600, fontSize: width < NARROW ? 10 : 12 }),
      ...[ticks.filter((tick) => tick.x === 0), ticks.filter((tick) => tick.x > 0)].map((some, right) => Plot.text(some, { dx: right ? 5 : -5, textAnchor: right ? "start" : "end", x: "x", y: "y", text: "text", stroke: "#fff", strokeWidth: 4, fill: "#1b1f24", fontSize: 10.5 })),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (point) => point.line.title })),
    ],
  });
}
