// Draws the charts of the run report as SVG. Colours come from the page's style, so light, dark and paper need no redrawing.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const ZERO = -99; // in a heat map: nothing at all, which has no logarithm
  const LEVELS = 12; // of colour
  const page = { axis: "step", log: false };

  // --- small helpers -------------------------------------------------------------------------------------------------

  const make = (parent, name, attributes, text) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const element = (parent, name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const whole = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const short = (value) => (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4) ? value.toExponential(2) : String(+value.toPrecision(3)));
  const written = (value, form) => (form === "loss" ? value.toFixed(3) : form === "count" ? whole(value) : short(value));
  const clock = (seconds) => (seconds < 90 ? `${+seconds.toFixed(1)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(2)} h`);
  const counted = document.querySelector("[data-counted]")?.dataset.counted ?? "tokens"; // what the axis of tokens counts
  const place = { step: (v) => `step ${whole(v)}`, tokens: (v) => `${whole(v)} ${counted}`, time: clock };

  function nearest(values, wanted) { // the index of the value nearest to `wanted`; values rise
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle; else high = middle;
    }
    return wanted - values[low] <= values[high] - wanted ? low : high;
  }

  function roundNumbers(low, high, most) { // multiples of 1, 2 or 5 times a power of ten
    if (!(high > low)) return [low];
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const stride = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / stride - 1e-9); i <= high / stride + 1e-9; i += 1) found.push(+(i * stride).toPrecision(12));
    return found;
  }

  function powers(low, high) { // 1, 2 and 5 times each power of ten
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
      for (const factor of [1, 2, 5]) if (factor * 10 ** power >= low * 0.999 && factor * 10 ** power <= high * 1.001) found.push(+(factor * 10 ** power).toPrecision(12));
    return found;
  }

  // --- one chart -----------------------------------------------------------------------------------------------------

  class Chart {
    constructor(box) {
      this.box = box;
      this.figure = JSON.parse(box.nextElementSibling.textContent);
      this.isWide = box.parentElement.classList.contains("wide");
      this.close = true;
      this.hidden = new Set();
      this.zoom = null;
      this.tip = element(box, "div", "tip");
      this.tip.hidden = true;
      this.spoken = element(box, "p", "unseen");
      this.spoken.setAttribute("aria-live", "polite");
      (this.figure.series || []).forEach((one, index, all) => {
        if (!one.xs) one.xs = all[index - 1].xs;
        one.group = one.group ?? index;
      });
      box.addEventListener("keydown", (event) => this.key(event));
      box.addEventListener("blur", () => this.leave());
      box.addEventListener("pointerleave", () => this.leave());
      box.addEventListener("pointermove", (event) => this.move(event));
      if (this.figure.kind === "lines") {
        this.legend();
        box.addEventListener("pointerdown", (event) => this.press(event));
        box.addEventListener("pointerup", (event) => this.release(event));
        box.addEventListener("dblclick", () => this.zoomTo(null));
      }
      const button = box.parentElement.querySelector("[data-toggle=close]");
      if (button) button.addEventListener("click", () => {
        this.close = !this.close;
        button.setAttribute("aria-pressed", String(this.close));
        this.zoomTo(null);
      });
      this.draw();
    }

    legend() {
      const groups = new Map();
      for (const one of this.figure.series) groups.set(one.group, one); // in the colour of its last, the clearest
      if (groups.size < 2) return;
      const list = element(this.box.parentElement.querySelector("figcaption"), "div", "legend");
      groups.forEach((one, group) => {
        const button = element(list, "button");
        button.type = "button";
        element(button, "span", `key ${one.role}`);
        button.append(one.legend || one.name);
        button.setAttribute("aria-pressed", "true");
        button.addEventListener("click", () => {
          if (!this.hidden.delete(group)) this.hidden.add(group);
          button.setAttribute("aria-pressed", String(!this.hidden.has(group)));
          this.draw();
        });
      });
    }

    get axis() { return (this.figure.series || []).every((one) => one.xs[page.axis]) ? page.axis : "step"; }
    get shown() { return this.figure.series.filter((one) => !this.hidden.has(one.group)); }

    range() { // of both axes
      const xs = this.shown.flatMap((one) => { const x = one.xs[this.axis]; return [x[0], x[x.length - 1]]; });
      let [left, right] = xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1];
      if (page.log) left = Math.max(left, right / 1e6, 1e-3);
      else if (left < 0.5 * right) left = 0;
      if (this.zoom) [left, right] = this.zoom;
      if (left === right) [left, right] = [left - 0.5, right + 0.5];
      return [left, right, ...this.values(left, right)];
    }

    values(left, right) {
      const { view, levels, zero } = this.figure;
      if (this.close && view && !this.zoom) return view;
      let low = Infinity, high = -Infinity;
      for (const one of this.shown) one.y.forEach((y, i) => {
        const x = one.xs[this.axis][i];
        if (x >= left && x <= right && y !== null) { low = Math.min(low, y); high = Math.max(high, y); }
      });
      if (!this.zoom) for (const level of levels) { low = Math.min(low, level.y); high = Math.max(high, level.y); }
      if (low > high) [low, high] = [0, 1];
      if (zero && !this.zoom) low = Math.min(low, 0);
      const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.1;
      return [zero && low === 0 ? 0 : low - margin, high + margin];
    }

    draw() {
      this.svg?.remove();
      this.svg = document.createElementNS(SVG, "svg");
      this.box.prepend(this.svg);
      const width = this.box.clientWidth;
      this.height = this.figure.kind === "heat" ? 46 + Math.max(6, Math.min(18, 900 / this.figure.parts.length)) * this.figure.parts.length : this.box.clientHeight;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
      this.svg.setAttribute("height", this.height);
      this.svg.setAttribute("aria-hidden", "true");
      this.right = width - 10;
      this.top = this.figure.kind === "lines" ? 26 : 4;
      this.bottom = this.height - 38;
      this.tip.hidden = true;
      this.ticked = -Infinity;
      if (this.figure.kind === "lines") this.drawLines(); else this.drawHeat();
      this.cursor = make(this.svg, "g", { class: "cursor" });
    }

    // --- lines

    x(value) {
      const [left, right] = this.domain;
      const share = page.log ? Math.log(Math.max(value, left / 1e3) / left) / Math.log(right / left) : (value - left) / (right - left);
      return this.left + share * (this.right - this.left);
    }
    y(value) { const [, , low, high] = this.domain; return this.bottom - ((value - low) / (high - low)) * (this.bottom - this.top); }
    at(pixel) { // the value of the horizontal axis at a pixel
      const [left, right] = this.domain, share = (pixel - this.left) / (this.right - this.left);
      return page.log ? left * (right / left) ** share : left + share * (right - left);
    }

    drawLines() {
      this.domain = this.range();
      const [left, right, low, high] = this.domain;
      const heights = roundNumbers(low, high, this.isWide ? 7 : 4);
      const digits = Math.max(0, ...heights.map((v) => (String(v).split(".")[1] || "").length));
      const label = (v) => (Math.abs(v) >= 1e6 || (v !== 0 && Math.abs(v) < 1e-4) ? v.toExponential(0) : v.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
      this.left = 14 + 7.2 * Math.max(...heights.map((v) => label(v).length));
      for (const v of heights) {
        make(this.svg, "path", { class: "grid", d: `M${this.left} ${this.y(v)}H${this.right}` });
        make(this.svg, "text", { x: this.left - 7, y: this.y(v) + 4, "text-anchor": "end" }, label(v));
      }
      this.drawAxis(left, right);
      if (this.figure.unit) make(this.svg, "text", { x: 2, y: 12 }, this.figure.unit);
      const id = `area-${this.box.id}`;
      make(make(this.svg, "clipPath", { id }), "rect", { x: this.left, y: this.top, width: Math.max(0, this.right + 4 - this.left), height: this.bottom - this.top });
      const area = make(this.svg, "g", { "clip-path": `url(#${id})` });
      for (const level of this.figure.levels) {
        make(area, "path", { class: level.role, d: `M${this.left} ${this.y(level.y)}H${this.right}` });
        const under = this.bottom - this.y(level.y) > 20;
        make(area, "text", { class: level.role, x: this.right - 2, y: this.y(level.y) + (under ? 15 : -5), "text-anchor": "end" }, `${level.name}: ${written(level.y, this.figure.form)}`);
      }
      for (const one of this.shown) this.drawSeries(area, one);
      this.markClipped(high);
    }

    drawAxis(left, right) {
      const unit = this.axis === "time" ? (right < 90 ? [1, "seconds"] : right < 5400 ? [60, "minutes"] : [3600, "hours"]) : [1, this.axis === "tokens" ? counted : this.axis];
      const most = Math.max(3, Math.floor((this.right - this.left) / 75));
      const ticks = (page.log ? powers : roundNumbers)(left / unit[0], right / unit[0], most).map((v) => v * unit[0]);
      const words = (v) => (this.axis === "tokens" && right >= 1e6 ? `${+(v / 1e6).toPrecision(4)} M` : whole(v / unit[0]) === "0" && v ? String(+(v / unit[0]).toPrecision(2)) : (v / unit[0]).toLocaleString("en-US", { maximumFractionDigits: 2 }));
      for (const v of ticks) this.tick(this.x(v), words(v));
      make(this.svg, "path", { class: "axis", d: `M${this.left} ${this.bottom}H${this.right}` });
      make(this.svg, "text", { x: this.right, y: this.bottom + 34, "text-anchor": "end" }, unit[1]);
    }

    tick(x, words) { // a number below the horizontal axis, unless it would run into the one before
      const half = 3.6 * words.length, from = Math.min(x, this.right + 8 - half) - half;
      if (x < this.left - 1 || x > this.right + 1 || from < this.ticked + 6) return;
      this.ticked = from + 2 * half;
      make(this.svg, "path", { class: "grid", d: `M${x} ${this.bottom}v4` });
      make(this.svg, "text", { x: from + half, y: this.bottom + 17, "text-anchor": "middle" }, words);
    }

    drawSeries(area, one) {
      const x = one.xs[this.axis];
      let path = "";
      one.y.forEach((y, i) => { if (y !== null) path += `${path ? "L" : "M"}${this.x(x[i]).toFixed(1)} ${this.y(y).toFixed(1)}`; });
      if (one.y.length > 1 && !one.dots) make(area, "path", { class: one.role, d: path });
      if (one.marks || one.y.length === 1 || one.dots)
        one.y.forEach((y, i) => { if (y !== null && (one.y.length < 80 || one.dots)) make(area, "circle", { class: one.role, cx: this.x(x[i]), cy: this.y(y), r: 3 }); });
    }

    markClipped(high) { // each stretch above the chart is marked at its edge, the highest with its number
      const [left, right] = this.domain, points = [];
      for (const one of this.shown) one.y.forEach((y, i) => {
        const x = one.xs[this.axis][i];
        if (y !== null && y > high && x >= left && x <= right) points.push([this.x(x), y]);
      });
      if (!points.length) return;
      const stretches = [];
      for (const point of points.sort((a, b) => a[0] - b[0])) {
        const last = stretches.at(-1);
        if (!last || point[0] - last.end > 40) stretches.push({ end: point[0], peak: point });
        else { last.end = point[0]; if (point[1] > last.peak[1]) last.peak = point; }
      }
      const highest = stretches.reduce((best, one) => (one.peak[1] > best.peak[1] ? one : best));
      for (const { peak } of stretches) make(this.svg, "path", { class: "clipped", d: `M${peak[0] - 5} ${this.top + 8}h10l-5 -7z` });
      const isLeft = highest.peak[0] < (this.left + this.right) / 2;
      const x = isLeft ? Math.max(highest.peak[0] - 5, 16 + 7 * this.figure.unit.length) : highest.peak[0] + 5; // beside the unit, above the curves
      make(this.svg, "text", { x, y: 12, "text-anchor": isLeft ? "start" : "end" }, `▲ up to ${written(highest.peak[1], this.figure.form)}`);
    }

    // --- heat

    drawHeat() {
      const { parts, steps, z } = this.figure;
      this.left = Math.min(160, 16 + 6.8 * Math.max(...parts.map((part) => part.length)));
      const known = z.flat().filter((v) => v !== null && v !== ZERO);
      this.highest = known.length ? Math.max(...known) : 0;
      this.lowest = known.length ? Math.max(Math.min(...known), this.highest - 5) : -1; // five decades of colour
      const w = (this.right - this.left) / steps.length, h = (this.bottom - this.top) / parts.length;
      const paths = new Map();
      z.forEach((row, r) => row.forEach((v, c) => {
        if (v === null) return;
        const share = (v - this.lowest) / (this.highest - this.lowest || 1);
        const kind = v === ZERO ? "none" : `h${Math.min(LEVELS - 1, Math.max(0, Math.floor(share * LEVELS)))}`;
        paths.set(kind, (paths.get(kind) || "") + `M${(this.left + c * w).toFixed(2)} ${(this.top + r * h).toFixed(2)}h${w.toFixed(2)}v${(h - 1).toFixed(2)}h${(-w).toFixed(2)}z`);
      }));
      const hatch = make(this.svg, "pattern", { id: `hatch-${this.box.id}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
      make(hatch, "rect", { class: "hatch", width: 2, height: 6 });
      paths.forEach((d, kind) => make(this.svg, "path", kind === "none" ? { fill: `url(#hatch-${this.box.id})`, d } : { class: kind, d }));
      const every = Math.ceil(13 / h);
      parts.forEach((part, r) => { if (r % every === 0) make(this.svg, "text", { x: this.left - 7, y: this.top + (r + 0.5) * h + 4, "text-anchor": "end" }, part.slice(0, 22)); });
      const most = Math.max(3, Math.floor((this.right - this.left) / 75)), count = steps.length;
      for (const v of roundNumbers(steps[0], steps[count - 1], most))
        this.tick(this.left + (nearest(steps, v) + 0.5) * w, whole(v));
      make(this.svg, "text", { x: this.right, y: this.bottom + 32, "text-anchor": "end" }, "step");
      const scale = make(this.svg, "g", {});
      make(scale, "text", { x: this.left, y: this.bottom + 32 }, short(10 ** this.lowest));
      const begin = this.left + 8 + 7 * short(10 ** this.lowest).length;
      for (let i = 0; i < LEVELS; i += 1) make(scale, "path", { class: `h${i}`, d: `M${begin + 9 * i} ${this.bottom + 23}h9v10h-9z` });
      make(scale, "text", { x: begin + 9 * LEVELS + 7, y: this.bottom + 32 }, short(10 ** this.highest));
    }

    // --- reading values

    show(index, row = 0) { // at a column: of the first series that is shown, or of the heat map
      this.index = index;
      this.cursor.replaceChildren();
      this.tip.replaceChildren();
      const pixel = this.figure.kind === "lines" ? this.tellLines(index) : this.tellHeat(index, row);
      if (pixel === null) return;
      this.tip.hidden = false;
      const room = this.box.clientWidth - this.tip.offsetWidth - 4;
      const isLeft = pixel + 14 > room;
      this.tip.style.left = `${Math.max(0, isLeft ? pixel - this.tip.offsetWidth - 12 : pixel + 12)}px`;
      this.tip.style.top = `${this.top + 4}px`;
    }

    tellLines(index) {
      const guide = this.guide();
      if (!guide) return null;
      const value = guide.xs[this.axis][index], x = this.x(value);
      make(this.cursor, "path", { d: `M${x} ${this.top}V${this.bottom}` });
      const head = Object.keys(place).filter((axis) => guide.xs[axis]).map((axis) => place[axis](guide.xs[axis][index])).join(" · ");
      element(this.tip, "p", "head", head);
      for (const one of this.shown) {
        const i = nearest(one.xs.step, guide.xs.step[index]);
        if (one.marks || one.dots) { // rare points are told where they are
          if (one.xs.step[i] !== guide.xs.step[index] && Math.abs(this.x(one.xs[this.axis][i]) - x) > 6) continue;
        }
        if (one.y[i] === null || one.xs[this.axis][0] > value * 1.02 || one.xs[this.axis].at(-1) < value * 0.98) continue;
        const line = element(this.tip, "p");
        element(line, "span", `key ${one.role}`);
        line.append(`${one.name} `);
        element(line, "b", "", written(one.y[i], this.figure.form));
      }
      return x;
    }

    guide() { // the series whose points the cursor stands on: the one with most of them
      return this.shown.reduce((best, one) => (!best || one.y.length > best.y.length ? one : best), null);
    }

    tellHeat(column, row) {
      const { parts, steps, z } = this.figure;
      this.row = row;
      const w = (this.right - this.left) / steps.length, h = (this.bottom - this.top) / parts.length, v = z[row][column];
      make(this.cursor, "rect", { x: this.left + column * w, y: this.top + row * h, width: w, height: h });
      element(this.tip, "p", "head", `${parts[row]}, step ${whole(steps[column])}`);
      element(this.tip, "b", "", v === null ? "not logged" : v === ZERO ? "0" : short(10 ** v));
      return this.left + (column + 1) * w;
    }

    move(event) {
      const box = this.box.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      if (this.pressed !== undefined) return this.band(x);
      if (x < this.left - 4 || x > this.right + 4 || y < this.top || y > this.bottom) return this.leave();
      if (this.figure.kind === "lines") {
        const guide = this.guide();
        if (guide) this.show(nearest(guide.xs[this.axis], this.at(x)));
      } else {
        const { parts, steps } = this.figure;
        const column = Math.floor(((x - this.left) / (this.right - this.left)) * steps.length);
        const row = Math.floor(((y - this.top) / (this.bottom - this.top)) * parts.length);
        this.show(Math.min(steps.length - 1, Math.max(0, column)), Math.min(parts.length - 1, Math.max(0, row)));
      }
    }

    leave() { this.tip.hidden = true; this.cursor.replaceChildren(); }

    key(event) {
      const isHeat = this.figure.kind === "heat", guide = isHeat ? null : this.guide();
      const last = isHeat ? this.figure.steps.length - 1 : guide ? guide.y.length - 1 : 0;
      const stride = event.shiftKey ? 10 : 1, now = this.index ?? last, row = this.row ?? 0;
      const to = { ArrowLeft: now - stride, ArrowRight: now + stride, Home: 0, End: last }[event.key];
      const down = isHeat && { ArrowUp: row - 1, ArrowDown: row + 1 }[event.key];
      if (event.key === "Escape") { this.zoomTo(null); this.leave(); return; }
      if (to === undefined && typeof down !== "number") return;
      event.preventDefault();
      const inside = (value, most) => Math.min(most, Math.max(0, value));
      this.show(inside(to ?? now, last), isHeat ? inside(typeof down === "number" ? down : row, this.figure.parts.length - 1) : 0);
      this.spoken.textContent = [...this.tip.children].map((line) => line.textContent).join(", ");
    }

    // --- zoom: a stretch drawn with the mouse; a double click or Escape leads back

    press(event) {
      const x = event.clientX - this.box.getBoundingClientRect().left;
      if (event.pointerType === "mouse" && event.button === 0 && x > this.left) this.pressed = x;
    }
    band(x) {
      this.cursor.replaceChildren();
      make(this.cursor, "rect", { class: "band", x: Math.min(x, this.pressed), y: this.top, width: Math.abs(x - this.pressed), height: this.bottom - this.top });
    }
    release(event) {
      if (this.pressed === undefined) return;
      const x = event.clientX - this.box.getBoundingClientRect().left, from = this.pressed;
      this.pressed = undefined;
      if (Math.abs(x - from) > 8) this.zoomTo([this.at(Math.max(this.left, Math.min(x, from))), this.at(Math.min(this.right, Math.max(x, from)))]);
    }
    zoomTo(range) { this.zoom = range; this.draw(); }
  }

  // --- the page ------------------------------------------------------------------------------------------------------

  const charts = [...document.querySelectorAll(".chart")].map((box) => new Chart(box));
  const redraw = () => charts.forEach((chart) => { chart.zoom = null; chart.draw(); });
  const axes = [...document.querySelectorAll("[data-axis]")];
  axes.forEach((button) => button.addEventListener("click", () => {
    page.axis = button.dataset.axis;
    axes.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    redraw();
  }));
  document.querySelectorAll("[data-toggle=log]").forEach((button) => button.addEventListener("click", () => {
    page.log = !page.log;
    button.setAttribute("aria-pressed", String(page.log));
    redraw();
  }));
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth !== width) charts.forEach((chart) => chart.draw());
    width = document.body.clientWidth;
  }).observe(document.body);
  addEventListener("beforeprint", () => charts.forEach((chart) => chart.draw()));
})();
