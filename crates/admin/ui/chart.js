// Charts over time, as SVG made by hand: lines with a gap where nothing is known, a scale that begins at 0, the value
// under the pointer. And the sparkline, the same without anything around.

import { h, s, setAttr, setShown, setText } from "./dom.js";
import { clock, minute, moment } from "./format.js";

const PAD = { top: 8, right: 8, bottom: 20, left: 52 };
const HEIGHT = 168;

/** The next round number above: 1, 2, 2.5 or 5 times a power of ten. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999) ?? 10 * power;
}

/** The same for seconds: numbers whose half can be read too, 30 s and 15 s, 1 h and 30 min. */
function roundUpSeconds(value) {
  if (value <= 10) return roundUp(value);
  return [20, 30, 60, 120, 240, 480, 600, 1200, 3600, 7200, 14400, 43200, 86400].find((step) => step >= value) ?? roundUp(value);
}

/** Paths of a series; it is broken where a value is missing or two points are further apart than `gap`. */
function paths(points, x, y, gap) {
  const runs = [];
  let run = null;
  let before = null;
  for (const point of points) {
    if (point.value === null || !Number.isFinite(point.value)) {
      run = null;
      continue;
    }
    if (!run || (before !== null && point.at - before > gap)) {
      run = [];
      runs.push(run);
    }
    run.push([x(point.at), y(point.value)]);
    before = point.at;
  }
  const line = (one) => one.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  return {
    line: runs.map((one) => (one.length === 1 ? `${line(one)}h0.1` : line(one))).join(""),
    area: runs.map((one) => `${line(one)}L${one.at(-1)[0].toFixed(1)} ${y(0)}L${one[0][0].toFixed(1)} ${y(0)}Z`).join(""),
  };
}

/**
 * A chart. `series`: `{ key, name, area }`, drawn in that order; `format(value)` for the scale; `limit()`: a line that
 * should not be crossed; `spans`: how much is shown, up to now: the shortest of these that holds all there is; `gap`: points further
 * apart are not joined.
 *
 * @param {{ title: string, series: { key: string, name: string, area?: boolean }[], format: (value: any) => string, limit?: () => number | null, limitName?: string, seconds?: boolean, spans: number[], gap?: number }} options
 */
export function lineChart({ title, series, format, limit = () => null, limitName = "", seconds = false, spans, gap: apart }) {
  const svg = s("svg", { role: "img", height: HEIGHT });
  const grid = s("g.chart-grid");
  const limitLine = s("line.chart-limit");
  const areas = series.map((each, index) => (each.area ? s("path.chart-area", { data: { series: index } }) : null));
  const lines = series.map((each, index) => s("path.chart-line", { data: { series: index } }));
  const cross = s("line.chart-cross");
  const dots = series.map((each, index) => s("circle.chart-dot", { r: 3.5, data: { series: index } }));
  const pointer = s("g", cross, ...dots);
  svg.append(grid, ...areas.filter(Boolean), limitLine, ...lines, pointer);
  const tip = h("div.chart-tip", { hidden: true });
  const values = series.map((each, index) => {
    const value = h("span.num");
    return { value, node: h("span.chart-key", h("i", { data: { series: index } }), each.name, value) };
  });
  const limitKey = h("span.chart-key", h("i.limit"), limitName);
  const empty = h("p.chart-empty", "No data yet");
  const plot = h("div.chart-plot", svg, tip, empty);
  const node = h("figure.chart", h("figcaption", h("span.chart-title", title), h("span.chart-keys", values.map((each) => each.node), limitKey)), plot);

  let points = [];
  let until = Date.now();
  let windowMs = spans[0];
  let scale = null;

  function draw() {
    const width = plot.clientWidth;
    if (width === 0) return;
    const from = until - windowMs;
    const shown = points.filter((point) => point.at >= from);
    const known = shown.flatMap((point) => series.map((each) => point[each.key])).filter(Number.isFinite);
    setShown(empty, known.length === 0);
    setAttr(svg, "width", width);
    setAttr(svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
    const bound = limit();
    const highest = Math.max(...known, 0);
    const top = (seconds ? roundUpSeconds : roundUp)(Math.max(highest, bound !== null && highest > bound / 3 ? bound * 1.1 : 0, 1e-3));
    const x = (at) => PAD.left + ((at - from) / windowMs) * (width - PAD.left - PAD.right);
    const y = (value) => PAD.top + (1 - value / top) * (HEIGHT - PAD.top - PAD.bottom);
    scale = { x, y, from, width };
    drawGrid(top, x, y, from, width);
    const limitShown = bound !== null && bound <= top;
    setShown(limitKey, limitShown && limitName);
    setAttr(limitLine, "visibility", limitShown ? "visible" : "hidden");
    if (limitShown) for (const [name, value] of Object.entries({ x1: PAD.left, x2: width - PAD.right, y1: y(bound), y2: y(bound) })) setAttr(limitLine, name, value);
    const gap = apart ?? windowMs / 40;
    series.forEach((each, index) => {
      const drawn = paths(shown.map((point) => ({ at: point.at, value: point[each.key] ?? null })), x, y, gap);
      setAttr(lines[index], "d", drawn.line);
      if (areas[index]) setAttr(areas[index], "d", drawn.area);
      const last = shown.at(-1)?.[each.key] ?? null;
      setText(values[index].value, format(last));
    });
    const summary = series.map((each) => {
      const all = shown.map((point) => point[each.key]).filter(Number.isFinite);
      return `${each.name}: now ${format(shown.at(-1)?.[each.key])}, highest ${format(all.length ? Math.max(...all) : null)}`;
    });
    setAttr(svg, "aria-label", `${title}. ${summary.join("; ")}`);
  }

  function drawGrid(top, x, y, from, width) {
    const marks = [0, top / 2, top].flatMap((value) => [
      s("line", { x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
      s("text", { x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)),
    ]);
    const steps = [30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000, 3_600_000, 10_800_000, 21_600_000, 43_200_000];
    const step = steps.find((each) => windowMs / each <= Math.max(2, width / 110)) ?? 43_200_000;
    for (let at = Math.ceil(from / step) * step; at <= until; at += step) {
      if (x(at) > PAD.left + 12 && x(at) < width - 18) marks.push(s("text", { x: x(at), y: HEIGHT - 5, "text-anchor": "middle" }, minute(at)));
    }
    grid.replaceChildren(...marks);
  }

  function point(event) {
    const shown = points.filter((each) => each.at >= scale?.from);
    if (!scale || shown.length === 0) return;
    const left = event.clientX - plot.getBoundingClientRect().left;
    const nearest = shown.reduce((best, each) => (Math.abs(scale.x(each.at) - left) < Math.abs(scale.x(best.at) - left) ? each : best));
    const at = scale.x(nearest.at);
    for (const [name, value] of Object.entries({ x1: at, x2: at, y1: PAD.top, y2: HEIGHT - PAD.bottom })) setAttr(cross, name, value);
    series.forEach((each, index) => {
      const value = nearest[each.key];
      setAttr(dots[index], "visibility", Number.isFinite(value) ? "inherit" : "hidden");
      if (Number.isFinite(value)) {
        setAttr(dots[index], "cx", at);
        setAttr(dots[index], "cy", scale.y(value));
      }
    });
    tip.replaceChildren(
      h("strong", clock(nearest.at, until)),
      ...series.map((each, index) => h("span", h("i", { data: { series: index } }), `${each.name} `, h("b", format(nearest[each.key])))),
    );
    setShown(tip, true);
    setAttr(pointer, "visibility", "visible");
    const right = at > scale.width / 2;
    tip.style.left = right ? "" : `${at + 12}px`;
    tip.style.right = right ? `${scale.width - at + 12}px` : "";
  }
  function leave() {
    setShown(tip, false);
    setAttr(pointer, "visibility", "hidden");
  }
  leave();
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", leave);
  const observer = new ResizeObserver(draw);
  observer.observe(plot);

  return {
    node,
    /** `history` as the API gives it; `now` by the server's clock. */
    update(history, now) {
      points = history.map((each) => ({ ...each, at: moment(each.at) })).filter((each) => each.at !== null);
      until = now;
      windowMs = spans.find((each) => points.length === 0 || until - points[0].at <= each) ?? spans[spans.length - 1];
      draw();
    },
    stop: () => observer.disconnect(),
  };
}

/** A line without axes beside a number. `update(values)`; null is a gap. */
export function sparkline() {
  const width = 96;
  const height = 28;
  const line = s("path.chart-line", { data: { series: 0 } });
  const area = s("path.chart-area", { data: { series: 0 } });
  const node = s("svg.spark", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true", preserveAspectRatio: "none" }, area, line);
  return {
    node,
    update(values) {
      const top = Math.max(...values.filter(Number.isFinite), 1e-9);
      const x = (index) => (index / Math.max(values.length - 1, 1)) * width;
      const y = (value) => height - 2 - (value / top) * (height - 5);
      const drawn = paths(values.map((value, index) => ({ at: index, value: value ?? null })), x, y, 2);
      setAttr(line, "d", drawn.line);
      setAttr(area, "d", drawn.area);
    },
  };
}
