// Draws the charts of the run report in the colours of the page, and again whenever those change.
"use strict";
(() => {
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displayModeBar: false, showTips: false };
  const widths = { "train-raw": 1, train: 2.2, val: 2, floor: 1.6 };

  const charts = [...document.querySelectorAll(".chart")].map((place) => ({
    place,
    figure: JSON.parse(place.nextElementSibling.textContent),
    wide: place.parentElement.classList.contains("wide"),
    log: false,
    close: false,
    axis: "step",
  }));

  function traces(chart) {
    return chart.figure.data.map((trace) => {
      const role = trace.meta.role;
      if (role === "heat") return heat(chart, trace);
      const x = trace.meta.xs ? trace.meta.xs[chart.axis] : trace.x;
      return { ...trace, x, line: { color: colour(role), width: widths[role] || 2 }, marker: { color: colour(role), size: 6 } };
    });
  }

  function heat(chart, trace) {
    const ticks = [];
    for (let power = Math.ceil(trace.zmin); power <= trace.zmax; power += 1) ticks.push(power);
    const words = ticks.map((power) => (power < -3 ? "10" + [...String(power)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻").join("") : String(10 ** power)));
    return {
      ...trace,
      colorscale: [[0, colour("heat-low")], [0.5, colour("heat-mid")], [1, colour("heat-high")]],
      colorbar: { thickness: 10, outlinewidth: 0, tickvals: ticks, ticktext: words, tickfont: { color: colour("soft") } },
      hoverongaps: false,
    };
  }

  function stepRange(chart) {
    const range = chart.close && chart.figure.meta.close_up.x;
    if (!range) return { autorange: true };
    return { range: chart.log ? range.map(Math.log10) : range };
  }

  function span(chart) {
    const steps = traces(chart).flatMap((trace) => [trace.x[0], trace.x[trace.x.length - 1]]);
    return Math.max(...steps) - Math.min(...steps);
  }

  function layout(chart) {
    const family = getComputedStyle(document.body).fontFamily;
    const given = chart.figure.layout;
    const isHeat = chart.figure.data[0].type === "heatmap";
    if (given.height) chart.place.style.height = given.height + "px";
    const axis = {
      gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("grid"), color: colour("soft"), automargin: true,
      spikecolor: colour("soft"), spikethickness: 1,
    };
    return {
      paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"),
      font: { family, size: 12.5, color: colour("ink") },
      margin: { l: 8, r: 8, t: chart.wide && !isHeat ? 34 : 8, b: 8 },
      hovermode: isHeat ? "closest" : "x unified", dragmode: touch ? false : "zoom", // a finger scrolls the page
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { family, color: colour("ink") } },
      showlegend: chart.figure.data.length > 1 && (chart.wide || chart.figure.data[1].meta.role !== "train"),
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: colour("soft") } },
      xaxis: {
        ...axis, ...stepRange(chart), type: chart.log ? "log" : "linear", tickformat: ",d", hoverformat: ",d", unifiedhovertitle: { text: `${chart.axis} %{x:,d}` },
        dtick: chart.log && !chart.close ? "D2" : span(chart) < 10 ? 1 : undefined, nticks: chart.place.clientWidth > 600 ? 12 : 5,
        title: { text: chart.wide ? chart.axis : undefined, standoff: 6 },
      },
      yaxis: {
        ...axis, ...(isHeat ? {} : { nticks: chart.wide ? 8 : 5 }), autorange: true, ...given.yaxis,
        ...(chart.close ? { autorange: false, range: chart.figure.meta.close_up.y } : {}),
      },
      shapes: (given.shapes || []).map((line) => ({ ...line, line: { color: colour("floor"), width: widths.floor, dash: "dash" } })),
      annotations: (given.annotations || []).map((label) => ({ ...label, font: { color: colour("floor") } })),
    };
  }

  const draw = (chart) => Plotly.react(chart.place, traces(chart), layout(chart), config);
  const drawAll = () => charts.forEach(draw);

  charts.forEach((chart) => {
    const buttons = [...chart.place.parentElement.querySelectorAll("button")];
    const axes = buttons.filter((button) => button.dataset.axis);
    const mark = () => axes.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.axis === chart.axis)));
    axes.forEach((button) => button.addEventListener("click", () => {
      chart.axis = button.dataset.axis;
      mark();
      draw(chart);
    }));
    mark();
    buttons.filter((button) => button.dataset.toggle).forEach((button) => {
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        const which = button.dataset.toggle;
        chart[which] = !chart[which];
        button.setAttribute("aria-pressed", String(chart[which]));
        draw(chart);
      });
    });
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { root.classList.add("printing"); drawAll(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); drawAll(); });
  drawAll();
})();
