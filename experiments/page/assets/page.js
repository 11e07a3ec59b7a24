"use strict";
// The page: which run and step are looked at, and the sections that are drawn from them.

const scale = scaleOf(cells.map((cell) => cell.mean), content.isLoss, content.ceiling, content.floor);
const ended = [...new Set(runs.filter((run) => run.value === null).map((run) => (run.outcome === "stopped" ? "were stopped" : "diverged")))].join(" or ");
const measured = runs.some((run) => Object.keys(run.distributions).length);
// The key whose values have a colour each.
const lineAxis = downAxis.values.length > 1 ? downAxis : acrossAxis;
// A loss that has grown by more is not among the curves, which would be pressed flat.
const MOST_GROWTH = 1000;
// More cells than this are drawn as bands, more than that many of them not at all where lines cross.
const MOST_LINES = 60, MOST_CROSSING = 150, MOST_PROFILES = 12;
const state = { run: bestOf(runs), step: 0, measure: content.curve, by: cells.length > MOST_LINES ? lineAxis.key : "cell", logX: false, logY: content.isLoss, symbol: "z" };

// Elements, whose texts are never read as markup.
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key.startsWith("on") ? made.addEventListener(key.slice(2), value) : value !== false && made.setAttribute(key, value);
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

const section = (id, title, ...children) => el("section", { id }, el("h2", {}, title), ...children);
const figure = (id, caption = "") => el("figure", { id }, el("div"), caption && el("figcaption", {}, caption));
const chip = (outcome, text) => el("span", { class: `outcome ${outcome}` }, text);

function choice(label, options, key, draw) {
  const made = options.map(([value, text]) => el("option", { value, ...(value === state[key] ? { selected: "" } : {}) }, text));
  return el("label", {}, label, el("select", { id: `choose-${key}`, onchange: (event) => { state[key] = event.target.value; draw(); } }, ...made));
}

function toggle(label, key, draw) {
  const attributes = { type: "checkbox", id: `toggle-${key}`, onchange: (event) => { state[key] = event.target.checked; draw(); } };
  return el("label", {}, el("input", { ...attributes, ...(state[key] ? { checked: "" } : {}) }), label);
}

// Fill a figure, for the width that it has.
function fill(id, build) {
  const place = document.querySelector(`#${id} > div`);
  if (!place) return;
  const made = build(Math.max(240, place.clientWidth));
  place.replaceChildren(...[made].flat().filter(Boolean));
}

// ---- the sections ----

function heading() {
  const counts = content.outcomes.split(", ").map((text) => chip(text.split(" ")[1], text));
  return el("header", {},
    el("h1", {}, content.question || content.name),
    el("p", { class: "soft" }, [content.question && content.name, content.config["dataset.name"] && `data: ${content.config["dataset.name"]}`].filter(Boolean).join(" · ")),
    el("p", {}, ...counts),
    content.verdict && el("p", { class: "verdict" }, content.verdict),
    content.damaged.length ? el("p", {}, `Left out: ${content.damaged.join("; ")}`) : null,
  );
}

function swept() {
  if (!keys.length) return "";
  const rows = keys.flatMap((key) => [el("dt", {}, el("code", {}, key.key)), el("dd", {}, key.values.slice(0, 40).join(", ") + (key.values.length > 40 ? ", ..." : ""))]);
  return section("swept", "What was swept", el("dl", { class: "swept" }, ...rows));
}

function mapSection() {
  const card = el("div", {}, el("div", { id: "card" }), figure("losses"));
  if (runs.length === 1) return section("map-section", "The run", card);
  const rest = [content.averaged && `A cell is the ${content.averaged}.`, `* is the best${content.averaged && " of those in which no seed diverged"}${ended && `, orange ${ended}`}.`, `A click on a ${content.isSearch ? "point" : "cell"} shows its run everywhere on the page.`];
  return section("map-section", `Map of the ${content.measure}`,
    el("div", { class: "pair" }, figure("map", rest.filter(Boolean).join(" ")), card));
}

function curvesSection() {
  const names = Object.keys(runs[0].curves).map((name) => [name, name]);
  const by = [["cell", content.averaged ? "cell, over its seeds" : "run"], ...keys.filter((key) => key.key !== content.seed).map((key) => [key.key, key.word])];
  const controls = el("div", { class: "controls" },
    choice("measure", names, "measure", drawCurves),
    runs.length > 1 ? choice("a line for each", by, "by", drawCurves) : null,
    toggle("log steps", "logX", drawCurves), toggle("log values", "logY", drawCurves));
  return section("curves-section", "Curves", controls, figure("curves", " "));
}

function stepper(id) {
  const slide = el("input", { type: "range", min: 0, value: 0, step: 1, "aria-label": "step", class: "slider", id: `${id}-slider`, oninput: (event) => setStep(Number(event.target.value)) });
  return el("div", { class: "controls steps" }, el("button", { class: "play", onclick: play, "aria-label": "play the steps" }, "▶ play"), slide, el("output", { class: "at" }));
}

function normsSection() {
  const of = runs.length > 1 ? "Black is the run that is chosen; the others are the best ones across the map. " : "";
  return section("norms-section", "Gradient norms by block and step", stepper("norms"),
    el("div", { class: "halves" }, figure("profile", `${of}The axes stay as the step changes.`), figure("norms", "All steps of the run; the line is the step of the slider.")));
}

function distributionsSection() {
  if (!measured) {
    return section("distributions-section", "Distributions by block",
      el("p", {}, "These runs were trained without the instrument that measures them. With it this page has the distributions of pre-activations z, activations a, gradients da and dW, block by block:"),
      el("pre", {}, "python -m experiments.train -m instruments.signals=log"));
  }
  const symbols = { z: "pre-activations z", a: "activations a", da: "gradients |da|", dW: "gradients of the weights |dW|" };
  const controls = el("div", { class: "controls" }, choice("of", Object.entries(symbols), "symbol", drawDistributions));
  return section("distributions-section", "Distributions by block", stepper("distributions"), controls,
    figure("ridges", "Each block is as high as its own largest share of entries; what lies at 0, as relu's dead units do, may be higher than drawn."));
}

function parallelSection() {
  if (!keys.some((key) => key.key !== content.seed)) return "";
  const left = cells.length > MOST_CROSSING ? `Of ${cells.length} cells the best ${MOST_CROSSING} are drawn.` : "";
  return section("parallel-section", `Every key beside the ${content.measure}`, figure("parallel", [left, content.averaged && "A line is the mean of its seeds.", ended && `Orange lines ${ended}.`].filter(Boolean).join(" ")));
}

function studySection() {
  if (!content.picture) return "";
  return section("study-section", "Theory and measurement", el("p", {}, content.verdict), el("figure", {}, el("img", { src: content.picture, alt: content.verdict })));
}

function listed(id, title, values) {
  const rows = Object.entries(values).filter(([, value]) => value !== "").flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]);
  return el("details", { id, class: "printed" }, el("summary", {}, title), el("dl", {}, ...rows));
}

function recordSection() {
  const commands = content.commands.flatMap(({ does, types }) => [el("p", {}, `${does}:`), el("pre", {}, types)]);
  return section("record-section", "The record",
    el("details", { id: "table" }, el("summary", {}, `Table of ${runs.length === 1 ? "the run" : `all ${runs.length} runs`}`), el("div", { class: "scroll" })),
    listed("config", runs.length > 1 ? "What all runs share" : "Config", content.config),
    listed("environment", "Environment", content.environment),
    el("h3", {}, "How to reproduce it"), ...commands);
}

// ---- what is drawn again as the page is used ----

function drawMap() {
  const others = keys.map((key, place) => ({ ...key, place })).filter((key) => ![content.down, content.across, content.seed].includes(key.key));
  const best = d3.least(cells.filter((cell) => cell.whole), (cell) => cost(cell.mean));
  const shownCells = cells.map((cell) => {
    const share = cell.runs.length > 1 && cell.trained < cell.runs.length ? ` ${cell.trained}/${cell.runs.length}` : "";
    const star = cell === best ? "*" : "";
    const text = cell.mean === null ? "–" : `${short(cell.mean)}${star}${share}`;
    const narrow = cell.mean === null ? "–" : `${Number(cell.mean.toPrecision(2))}${star}`;
    const title = `${cell.name}: ${cell.mean === null ? missing(cell) : `${content.measure} ${short(cell.mean)}`}${share && `,${share} trained`}`;
    const selected = cell.runs.includes(state.run);
    return { cell, down: valueOf(cell.runs[0], downAxis), across: valueOf(cell.runs[0], acrossAxis), mean: cell.mean, text, narrow, title, best: cell === best, selected };
  });
  const worst = content.isLoss ? d3.max(cells, (cell) => cell.mean) > content.ceiling : d3.min(cells, (cell) => cell.mean) < content.floor;
  const alike = worst ? (content.isLoss ? ` (all above ${short(content.ceiling)} alike)` : ` (all below ${short(content.floor)} alike)`) : "";
  const tables = content.isSearch ? [["", shownCells]] : d3.groups(shownCells, ({ cell }) => others.map((key) => `${key.word} ${key.values[cell.runs[0].place[key.place]]}`).join(", "));
  fill("map", (width) => [
    ...tables.flatMap(([name, shown]) => [
      name && el("h3", {}, name),
      (content.isSearch ? pointsChart : mapChart)(shown, downAxis.values, acrossAxis.values, { down: content.down, across: content.across }, scale, width, ({ cell }) => select(bestOf(cell.runs))),
    ]),
    rampOf(scale, content.isLoss, `${content.measure}${alike}`, width),
  ]);
}

function drawCard() {
  const run = state.run, cell = cells.find((each) => each.runs.includes(run));
  const [step, block] = run.diverged;
  const facts = [[content.measure, run.value === null ? "none" : short(run.value)]];
  for (const name of Object.keys(run.curves).filter((name) => !name.startsWith("loss"))) facts.push([name, short(run.curves[name].values.at(-1))]);
  if (step >= 0) facts.push(["diverged", `at step ${step}, ${block > 0 ? `in block ${block}` : "in the loss"}`]);
  facts.push(["run", run.id]);
  const seeds = cell.runs.length > 1 ? cell.runs.map((each) =>
    el("button", { "aria-pressed": String(each === run), onclick: () => select(each) }, `seed ${valueOf(each, axisOf(content.seed))}`)) : [];
  document.getElementById("card").replaceChildren(
    el("h3", {}, runs.length > 1 ? run.name : ""), chip(run.outcome, run.outcome),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    seeds.length ? el("div", { class: "controls" }, ...seeds) : "");
  const series = [["batch", "loss/batch", "#a9b1b9"], ["train", "loss/train", COLOURS[0]], ["validation", "loss/validation", COLOURS[1]]]
    .filter(([, key]) => run.curves[key]).map(([name, key, colour]) => ({ name, colour, ...run.curves[key] }));
  fill("losses", (width) => [legendOf(series.map(({ name }) => name), series.map(({ colour }) => colour)), lossChart(series, width)]);
}

// A line a group of runs: the mean over seeds between the smallest and the largest, or the median of cells between the quartiles.
function linesOf(groups, summary) {
  return groups.flatMap(({ name, colour, runs, chosen }) => {
    const curves = runs.map((run) => run.curves[state.measure]).filter(Boolean);
    return d3.groups(curves, (curve) => curve.grid).flatMap(([grid, alike]) =>
      Array.from(alike[0].steps, (step, place) => {
        const { value, low, high } = summary(alike.map((curve) => curve.values[place]).filter(Number.isFinite));
        return { line: `${name} ${grid}`, colour, chosen, step, value, low, high, title: `${name}\n${state.measure} ${short(value)}${low < high ? ` (${short(low)} to ${short(high)})` : ""} at step ${step}` };
      }));
  });
}

const overSeeds = (values) => ({ value: d3.mean(values), low: d3.min(values), high: d3.max(values) });
const overCells = (values) => ({ value: d3.median(values), low: d3.quantile(values, 0.25), high: d3.quantile(values, 0.75) });

function drawCurves() {
  const chosenCell = cells.find((cell) => cell.runs.includes(state.run));
  const byCell = state.by === "cell" || runs.length === 1;
  const axis = byCell ? lineAxis : axisOf(state.by), colours = coloursOf(axis.values);
  const many = byCell && cells.length > MOST_LINES;
  const drawn = many ? d3.sort(cells, (cell) => cost(cell.mean)).slice(0, MOST_LINES) : cells;
  const groups = byCell
    ? drawn.map((cell) => ({ ...cell, colour: colours[axis.values.indexOf(valueOf(cell.runs[0], axis))] }))
    : d3.groups(runs, (run) => valueOf(run, axis)).map(([value, alike]) => ({ name: `${axis.word} ${value}`, runs: alike, colour: colours[axis.values.indexOf(value)] }));
  const one = byCell ? { ...chosenCell } : { name: state.run.name, runs: [state.run] };
  const first = d3.max(runs, (run) => run.curves[state.measure]?.values[0]), limit = state.measure.startsWith("loss") ? MOST_GROWTH * first : Infinity;
  const all = [...linesOf(groups, byCell ? overSeeds : overCells), ...linesOf([{ ...one, name: one.name + " ", colour: SELECTED, chosen: true }], overSeeds)];
  const points = all.filter((point) => !(point.high > limit));
  fill("curves", (width) => [
    runs.length > 1 && legendOf(axis.values.map((value) => `${axis.word} ${value}`), colours),
    curvesChart(points, state.measure, { x: state.logX, y: state.logY }, width),
  ]);
  const bands = byCell ? (content.averaged ? "A line is the mean of the seeds that have not diverged by then, its band the smallest and the largest of them." : "")
    : `A line is the median of all runs with that ${axis.word}, its band the middle half of them.`;
  const left = many ? `Of ${cells.length} cells the best ${MOST_LINES} are drawn.` : cells.length > MOST_LINES ? `${runs.length} runs are drawn as bands, not as lines.` : "";
  document.querySelector("#curves figcaption").textContent = [runs.length > 1 && "Black is the run that is chosen.", bands, left, state.logX && "A log axis begins at step 1.", points.length < all.length && `Losses above ${MOST_GROWTH} times the first one are not drawn.`].filter(Boolean).join(" ");
}

// The runs that stand for the sweep beside the one that is chosen.
function representatives() {
  const lines = d3.groups(cells, (cell) => cell.runs[0].place.filter((_, place) => keys[place].key !== content.seed && (lineAxis === acrossAxis || keys[place].key !== content.across)).join());
  const best = lines.map(([, alike]) => bestOf((d3.least(alike, (cell) => cost(cell.mean)) ?? alike[0]).runs));
  return thinned(best, MOST_PROFILES).filter((run) => run !== state.run);
}

function drawProfile() {
  const now = state.run.norms.steps[state.step];
  const colours = coloursOf(lineAxis.values);
  const shown = [...representatives(), state.run];
  const points = shown.flatMap((run) => {
    const { steps, values, blocks } = run.norms, from = nearest(steps, now) * blocks.length;
    const colour = colours[lineAxis.values.indexOf(valueOf(run, lineAxis))];
    return blocks.map((block, place) => ({ line: run.number, colour, block, norm: 10 ** values[from + place], chosen: run === state.run, title: `${run.name}\nblock ${block}: ${short(10 ** values[from + place])}` }));
  });
  const domain = d3.extent(shown.flatMap((run) => Array.from(run.norms.values, (value) => 10 ** value).filter(positive)));
  fill("profile", (width) => [
    runs.length > 1 && legendOf(lineAxis.values.map((value) => `${lineAxis.word} ${value}`), colours),
    profileChart(points, domain[0] === undefined ? [0.1, 1] : domain, width),
  ]);
}

function drawNorms() {
  const { steps, values, blocks } = state.run.norms;
  fill("norms", (width) => normsChart(values, steps, blocks, width));
  markStep();
}

// The heat map is drawn once a run, and its line moved.
function markStep() {
  const chart = document.querySelector("#norms svg[viewBox]:last-of-type, #norms figure > svg:last-of-type");
  const line = document.querySelector("#norms .now line, #norms line.now");
  const plot = document.querySelector("#norms > div > *");
  if (!line || !chart || !plot) return;
  const x = plot.scale("x").apply(state.step + 0.5);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  line.removeAttribute("transform");
}

function drawDistributions() {
  const found = state.run.distributions[state.symbol];
  fill("ridges", (width) => {
    if (!found) return el("p", { class: "soft" }, measured ? `The distributions of this run are not in the page, which has room for those of the best runs: python -m experiments.report ${state.run.id} writes one of this run alone.` : "");
    const place = nearest(found.steps, state.run.norms.steps[state.step]), size = found.blocks.length * (found.edges.length - 1);
    const theory = state.symbol === "z" && place === 0 ? state.run.theory : null;
    const label = `${found.log ? `|${state.symbol}|` : state.symbol}, measured at step ${found.steps[place]}${theory ? "; black: N(0, q_l) of mean-field theory" : ""}`;
    return ridgesChart(found.heights.subarray(place * size, (place + 1) * size), theory, found.edges, found.blocks, found.log, label, width);
  });
}

function drawParallel() {
  const swept = keys.map((key, place) => ({ ...key, place })).filter((key) => key.key !== content.seed);
  // What has no value lies beyond the worst one.
  const none = content.isLoss ? 1 : 0;
  const position = (content.isLoss ? d3.scaleLog : d3.scaleLinear)(scale.domain(), [0.08 * (1 - none), 1 - 0.08 * none]).clamp(true);
  const drawn = d3.sort(cells, (cell) => cost(cell.mean)).slice(0, MOST_CROSSING).reverse();
  const lines = drawn.map((cell) => ({
    at: [...swept.map((key) => (key.values.length > 1 ? cell.runs[0].place[key.place] / (key.values.length - 1) : 0.5)), cell.mean === null ? none : position(cell.mean)],
    colour: cell.mean === null ? DIVERGED : scale(cell.mean),
    title: `${cell.name}\n${cell.mean === null ? missing(cell) : `${content.measure} ${short(cell.mean)}`}`,
    chosen: cell.runs.includes(state.run),
  }));
  const ticks = position.ticks(4).filter((_, place, all) => place % Math.ceil(all.length / 5) === 0).map((tick) => ({ y: position(tick), text: short(tick) }));
  fill("parallel", (width) => parallelChart(lines, [...swept.map((key) => ({ label: key.word, ticks: key.values })), { label: content.measure.split(" ").at(-1), ticks: [] }], [...ticks, { y: none, text: "none" }], width));
}

const sorting = { column: keys.length, ascending: content.isLoss };

function drawTable() {
  const place = document.querySelector("#table > .scroll");
  if (!document.getElementById("table").open) return;
  const columns = [...keys.map((key, at) => [key.key, (run) => run.place[at], (run) => key.values[run.place[at]]]),
    [content.measure, (run) => (content.isLoss ? cost(run.value) : -cost(run.value)), (run) => short(run.value ?? NaN)], ["outcome", (run) => run.outcome, (run) => run.outcome]];
  const sorted = d3.sort(runs, columns[sorting.column][1]);
  if (!sorting.ascending) sorted.reverse();
  const sort = (column) => () => { sorting.ascending = sorting.column === column ? !sorting.ascending : true; sorting.column = column; drawTable(); };
  place.replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, ...columns.map(([name], column) => el("th", { scope: "col" }, el("button", { onclick: sort(column) }, name + (column === sorting.column ? (sorting.ascending ? " ↑" : " ↓") : "")))))),
    el("tbody", {}, ...sorted.map((run) => el("tr", { "aria-selected": String(run === state.run), onclick: () => select(run) }, ...columns.map(([, , text]) => el("td", {}, text(run))))))));
}

function setStep(place) {
  const { steps } = state.run.norms;
  state.step = Math.max(0, Math.min(place, steps.length - 1));
  for (const slide of document.querySelectorAll(".slider")) { slide.max = steps.length - 1; slide.value = state.step; }
  for (const output of document.querySelectorAll(".at")) output.textContent = `step ${steps[state.step]} of ${steps.at(-1)}`;
  drawProfile();
  markStep();
  drawDistributions();
}

let timer = null;

function play() {
  const names = (text) => document.querySelectorAll(".play").forEach((button) => { button.textContent = text; });
  if (timer) { clearInterval(timer); timer = null; return names("▶ play"); }
  if (state.step >= state.run.norms.steps.length - 1) setStep(0);
  names("❚❚ pause");
  timer = setInterval(() => (state.step < state.run.norms.steps.length - 1 ? setStep(state.step + 1) : play()), 120);
}

// Show a run everywhere, at the same step or the last one before it.
function select(run) {
  const now = state.run.norms.steps[state.step];
  state.run = run;
  state.step = nearest(run.norms.steps, now);
  draw();
}

function draw() {
  if (runs.length > 1) drawMap();
  drawCard();
  drawCurves();
  drawNorms();
  setStep(state.step);
  drawParallel();
  drawTable();
}

document.getElementById("page").append(...[heading(), swept(), mapSection(), curvesSection(), normsSection(), distributionsSection(), parallelSection(), studySection(), recordSection()].filter(Boolean));
document.getElementById("table").addEventListener("toggle", drawTable);
let width = 0;
new ResizeObserver(() => { const now = document.getElementById("page").clientWidth; if (now !== width) { width = now; draw(); } }).observe(document.getElementById("page"));
addEventListener("beforeprint", () => document.querySelectorAll("details.printed").forEach((each) => { each.open = true; }));
